"""The objectives: one loss, one file. Tensors and a process group in, this rank's value and its counts out.

Every objective follows the convention of ``collectives``: the mean over ranks is the loss of the global batch, and
averaged gradients are its gradient, whatever the number of ranks and however the rows lie on them.
"""
