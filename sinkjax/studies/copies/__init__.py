"""Can heads copy the attention of earlier heads, and at what cost?"""
