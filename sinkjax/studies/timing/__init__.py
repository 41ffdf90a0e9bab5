"""How much time does a mask save?"""
