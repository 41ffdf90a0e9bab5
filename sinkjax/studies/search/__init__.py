"""Which mask costs at most a given KL?"""
