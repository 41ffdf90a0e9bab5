"""Which heads are sinks, by length, text and definition?"""
