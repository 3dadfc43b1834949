"""Parameter-efficient tuning: what is put into a pretrained network, and what is trained of it.

Everything rests on :func:`gradbook.peft.injection.inject`, which freezes a model and puts new
modules in the place of some of its own, and on :func:`gradbook.peft.selection.train_only`, which
adds nothing and chooses what is trained.
"""
