"""Dense captions: images with a tree of masks and a text for each, packed into samples for vision-language training.

DCI and sDCI: "A Picture is Worth More Than 77 Text Tokens", Urbanek et al., arXiv 2312.08578.
"""
