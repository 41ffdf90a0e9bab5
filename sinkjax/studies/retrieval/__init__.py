"""Does a mask still find what stands far back in a text?"""
