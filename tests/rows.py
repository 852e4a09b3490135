"A layer made of layers, for tests of what is nested."
from fb_pass.modules import Module


class Row(Module):
    "Layers in a row, as one layer."
    def __init__(self, *layers): self.layers = layers
    def forward(self, x):
        for l in self.layers: x = l(x)
        return x
    def bwd(self, out, x):
        self.layers[-1].out.g = out.g
        for l in reversed(self.layers): l.backward()
