"""Is relevance conserved, and if not, where and why?"""
