"Exercises on short dtypes: a step of gradient descent with master weights."
import torch
from .asking import ask, exercise

def aside(p, master, g, lr):
    "Steps a copy that it keeps, and not the master that it is given."
    master.kept = getattr(master, 'kept', master) - lr*g.float()
    return master.kept.to(p.dtype)

@exercise('29.3', 'Write `master_step(p, master, g, lr)`, which steps `master` and returns the new `p`.',
    'In bfloat16 alone the weight would not have moved in any of the steps.', slips={
    'The weight has not moved: small steps are rounded away in `p`, and `master` has to be changed in place.':
        lambda p, master, g, lr: p - lr*g,
    'Gradient descent goes against the gradient.': lambda p, master, g, lr: master.add_(lr*g.float()).to(p.dtype)},
    wrong=[('its dtype', lambda p, master, g, lr: master.sub_(lr*g.float())),
           ('in place', lambda p, master, g, lr: (master - lr*g.float()).to(p.dtype)),
           ('not changed in place', aside)])
def masters(answer):
    p,master,g = torch.ones(3, dtype=torch.bfloat16),torch.ones(3),torch.ones(3, dtype=torch.bfloat16)
    want = (master - .001*100).to(p.dtype)
    for _ in range(100): p = answer(p, master, g, .001)
    assert isinstance(p, torch.Tensor) and p.dtype == torch.bfloat16, 'The new p has to have its dtype, bfloat16 here.'
    yield ask(p.float(), want.float(), 'p after 100 steps of 0.001', 'Which of the two can hold 0.999?')
    assert (master < .95).all(), 'The result is right, but `master` has not changed in place.'
