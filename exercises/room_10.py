"Exercises on the library: a file read by hand, what is counted in a model, and a training loop with two faults."
import json, struct

import torch
import torch.nn.functional as F
from fb_pass.library import named_weights, to_torch
from fb_pass.modules import Lin, Model, Relu
from fb_pass.training import CrossEntropy, mlp
from .asking import ask, exercise, rand

def _reader(begins=lambda length: 8 + length, shaped=True, dtype=None):
    "A wrong reader: with another place where the numbers begin, without the shape, or with one dtype for all."
    def read(data, name):
        length, = struct.unpack('<Q', data[:8])
        head = json.loads(data[8:8+length])[name]
        begin,end = (begins(length) + o for o in head['data_offsets'])
        of_file = {'F32': torch.float32, 'F64': torch.float64}[head['dtype']]
        t = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype or of_file)
        return t.view(head['shape']) if shaped else t
    return read

@exercise('10.3', 'Write `read_tensor(data, name)`: the tensor of that name from the bytes of a safetensors file.',
    'Eight bytes, a header, and the numbers: a reader of this format takes six lines.',
    wrong=[
    ('count from', _reader(lambda length: 0)), ('count from', _reader(lambda length: length)),
    ('shape', _reader(shaped=False)), ('for input of size 8', _reader(dtype=torch.float32))])
def read_tensor(read):
    from safetensors.torch import save
    first,second,third = torch.randn(3, 2),torch.randn(4),torch.randn(2, 3)
    data = save({'a.w': first, 'a.b': second, 'c.w': third})
    for name,want in {'a.b': second, 'a.w': first, 'c.w': third}.items():
        got = read(data, name)
        assert isinstance(got, torch.Tensor), ('It should return a tensor: `torch.frombuffer(bytearray(...), '
            'dtype=...)` makes one of bytes.')
        right = got.dtype == want.dtype and got.numel() == want.numel() and torch.equal(got.flatten(), want.flatten())
        assert right, (f'`{name}` has the wrong numbers. Its `data_offsets` count from the byte where the numbers '
            'begin: what comes before them in the file, and how long is it?')
        assert got.shape == want.shape, f'The numbers of `{name}` are right. Its shape is in the header too.'
    got = read(save({'d': second.double()}), 'd')
    right = got.dtype == torch.float64 and torch.equal(got, second.double())
    assert right, ('Files of float32 are read. Which dtype does the header name for this one, and how long is each '
        'number then?')

def counted():
    "Parameters, entries of the state, and named weights of a network that uses a weight twice."
    w = torch.randn(10, 10)
    model = Model.from_layers([Lin(w, torch.zeros(10)), Relu(), Lin(w, torch.zeros(10))], CrossEntropy())
    net = to_torch(model)
    return len(list(net.parameters())),len(net.state_dict()),len(named_weights(model))

def _training(softmax=False, clear='after'):
    "The loop of the exercise, with what may be wrong in it."
    def train(net, x, y, bs, lr):
        opt = torch.optim.SGD(net.parameters(), lr=lr)
        for i in range(0, len(x), bs):
            logits = net(x[i:i+bs])
            F.cross_entropy(logits.softmax(1) if softmax else logits, y[i:i+bs]).backward()
            if clear == 'between': opt.zero_grad()
            opt.step()
            if clear == 'after': opt.zero_grad()
    return train

@exercise('10.2', 'There are two faults in `faulty_training`. Write it again without them, as `repaired_training`.',
    'Forward, backward, step, clear. Neither fault raised an error; only the numbers showed them.', slips={
    'Nothing has moved: the weights are those at the start. What is in `.grad` at the moment when `opt.step()` looks?':
        _training(True, 'between'),
    'The weights move as if softmax were applied twice. `F.cross_entropy` wants logits.': _training(True),
    'The weights move along the sum of all the gradients so far. They must be cleared, but not between `backward` and '
        '`step`.': _training(False, 'never'),
    'The weights move along the sum of all the gradients so far, and of a different loss than intended: what does '
        '`F.cross_entropy` want?': _training(True, 'never')}, wrong=[
    ('Nothing has moved', _training(False, 'between'))])
def repaired_training(train):
    model = mlp(6, 5, 3, dtype=torch.float64)
    x,y = rand(40, 6),torch.randint(0, 3, (40,))
    def after(f):
        net = to_torch(model)
        f(net, x, y, 8, .5)
        return torch.cat([p.detach().flatten() for p in net.parameters()])
    got = after(train)
    yield ask(got, after(_training()), 'the vector of all weights', 'Expected five plain steps with the '
        'batches in order. Keep the rest of the loop as it was.')

def times_wider():
    "How many times wider our weights are than those of nn.Linear at the start, measured."
    return (mlp(1000, 1000).params[0].std()/torch.nn.Linear(1000, 1000).weight.detach().std()).item()
