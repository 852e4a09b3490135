"Exercises on the viewer: a module that passes its checks, and a block that it draws in white."
import torch
from fb_pass.gradients import add_grad
from fb_pass.modules import Lin, Model, Module, Mse
from fb_pass.viewer import show_backward
from .asking import exercise, rand

def _square(f, grad):
    class Square(Module):
        def forward(self, inp): return f(inp)
        def bwd(self, out, inp): add_grad(inp, grad(inp, out))
    return Square

@exercise('17.2', 'Write the module `Square`.', 'The view finds every gradient right.', wrong=[
    ('slope', _square(torch.square, lambda inp, out: inp*out.g)),
    ('slope', _square(torch.square, lambda inp, out: 2*inp)),
    ('slope', _square(torch.square, lambda inp, out: 2*out*out.g)),
    ('forward', _square(lambda inp: 2*inp, lambda inp, out: 2*out.g))])
def square(answer):
    assert isinstance(answer, type) and issubclass(answer, Module), ('Give the class itself, a Module: '
        '`check_exercise(..., Square)`.')
    layer,inp = answer(),rand(4, 3)
    out = layer(inp)
    squares = isinstance(out, torch.Tensor) and out.shape == inp.shape and torch.allclose(out, inp**2)
    assert squares, 'Look at `forward`: every entry times itself.'
    model = Model.from_layers([Lin(rand(5, 3), rand(3)), answer(), Lin(rand(3, 1), rand(1))], Mse())
    view = show_backward(model, rand(6, 5), rand(6))
    said = [f'The view says: {said}.'.replace('..', '.') for _,said in view.failures][:1]
    definition = ('Go back to the definition: the slope of a square is twice the input, and the upstream gradient '
                  'is multiplied by it.')
    assert view.ok, ' '.join([*said, definition])

@exercise('17.3', 'Give a block of shape (2,2) whose cell is white although no number in it is zero.', 'The largest '
    'absolute value, below the picture, does not cancel. A mean can hide numbers, a maximum cannot.', wrong=[
    ('none of them', torch.zeros(2, 2)), ('mean', torch.full((2, 2), 1e-9)), ('(2, 2)', torch.tensor([1., -1.]))])
def white_block(answer):
    fits = isinstance(answer, torch.Tensor) and answer.is_floating_point() and tuple(answer.shape) == (2, 2)
    assert fits, 'The answer is a floating-point tensor of shape (2, 2).'
    assert bool((answer != 0).all()), 'There is a zero in it, and none of them may be zero.'
    cancels = bool(answer.isfinite().all()) and abs(answer.mean().item()) <= 1e-6*answer.abs().max().item()
    assert cancels, 'Its mean is not zero, so its cell has a color, however pale. When is a mean zero?'
