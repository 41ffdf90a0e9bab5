"""How well are sinks predicted from what is known before they are measured?"""
