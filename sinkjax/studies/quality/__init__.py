"""What does a mask cost in quality?"""
