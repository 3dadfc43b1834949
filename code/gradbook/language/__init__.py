"""Text: snippets of reviews, a pretrained encoder with a classifier's head, and its fine-tuning.

Texts become ids of word pieces, [n, T], padded on the right, with a mask of the same shape that is 1
where there is a piece and 0 where there is padding.
"""
