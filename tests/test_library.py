"Counterparts: what a room declares about a layer is all that the conversions, the names and the files need."
import pytest
import torch
from fb_pass import library
from fb_pass.activations import Dropout, Gelu, Sigmoid, Silu, Tanh
from fb_pass.attention import Softmax
from fb_pass.checks import check_grad
from fb_pass.convolution import AvgPool2d, Conv2d, Flatten, MaxPool2d, Unflatten
from fb_pass.gradients import Rule
from fb_pass.library import counterpart, from_torch, load_weights, named_weights, save_weights, to_torch
from fb_pass.modules import Lin, Model, Module, Op, Relu
from fb_pass.norms import BatchNorm, LayerNorm, RmsNorm
from fb_pass.training import CrossEntropy
from torch import nn

scale_rule = Rule(lambda x, w: x*w.t(), lambda g, out, x, w: (g*w.t(), (g*x).sum(0)[:,None]))

class Scale(Op): # keeps a column where torch's layer keeps a row
    rule,uses,buffers = scale_rule,('w',),('mean',)
    def __init__(self, w, shift=None, power=1): self.w,self.shift,self.power = w,shift,power
class TorchScale(nn.Module):
    __constants__ = ['power', 'sign']
    def __init__(self, power=1, sign=1, mean=True):
        super().__init__()
        self.row,self.late,self.power,self.sign = nn.Parameter(torch.rand(1, 3)),None,power,sign
        if mean: self.register_buffer('mean', torch.zeros(3)); self.register_buffer('calls', torch.tensor(0))
    def forward(self, x): return x*self.row

@pytest.fixture(autouse=True)
def declared(monkeypatch):
    "The layers above, which are forgotten after each test."
    monkeypatch.setattr(library, '_known', dict(library._known))
    Scale.mean = None
    counterpart(Scale, TorchScale, lambda l: TorchScale(l.power), lambda l, w, shift=None: Scale(w, shift, l.power),
                weights=dict(w='row', shift='late'), optional=('shift',), buffers=dict(mean='mean'),
                without=('calls',), turn=torch.t)

def of(*layers): return Model.from_layers(layers, CrossEntropy())
def scale(**kw):
    layer = Scale(torch.rand(3, 1).double(), **kw)
    layer.mean = torch.rand(3).double()
    return layer

def test_a_declared_layer_is_converted_both_ways():
    model = of(scale(power=2))
    layer, = net = to_torch(model)
    assert torch.equal(layer.row, model.layers[0].w.t()) and layer.row.is_contiguous() and layer.power == 2
    assert isinstance(layer.row, nn.Parameter) and layer.row.dtype == torch.float64
    assert torch.equal(layer.mean, model.layers[0].mean) and layer.mean is not model.layers[0].mean
    again, = from_torch(net).layers
    assert torch.equal(again.w, model.layers[0].w) and torch.equal(again.mean, model.layers[0].mean)
    assert again.power == 2 and again.shift is None and again.w.data_ptr() != layer.row.data_ptr()

def test_its_parameters_have_our_names_and_layout(tmp_path):
    model = of(scale())
    model.layers[0].mean = None
    net = nn.Sequential(TorchScale(mean=False).double())
    save_weights(model, tmp_path/'w'); load_weights(net, tmp_path/'w')
    assert list(named_weights(net)) == list(named_weights(model)) == ['layers.0.w']
    assert torch.equal(net[0].row, model.layers[0].w.t())
    named_weights(net)['layers.0.w'].zero_()
    assert not net[0].row.any(), 'a view'

def test_buffers_are_in_the_files_of_both(tmp_path):
    model = of(scale())
    net = to_torch(model)
    assert list(named_weights(net)) == list(named_weights(model)) == ['layers.0.w', 'layers.0.mean']
    model.layers[0].mean += 1
    save_weights(model, tmp_path/'w'); load_weights(net, tmp_path/'w')
    assert torch.equal(net[0].mean, model.layers[0].mean)
    net[0].register_buffer('more', torch.zeros(1))
    with pytest.raises(TypeError, match='layer 0, .* more to save'): named_weights(net)

def test_a_parameter_that_may_be_missing():
    net = to_torch(of(scale(shift=torch.rand(2, 3).double())))
    assert net[0].late.shape == (3, 2)
    assert from_torch(net).layers[0].shift.shape == (2, 3)
    del net[0].row; net[0].row = None
    with pytest.raises(TypeError, match='its own row'): from_torch(net)

def test_a_setting_that_ours_does_not_have():
    with pytest.raises(TypeError, match='from_torch: layer 1, .*its sign cannot be carried over'):
        from_torch(nn.Sequential(nn.ReLU(), TorchScale(sign=-1)))
    from_torch(nn.Sequential(nn.ReLU(inplace=True))) # which changes no number

def test_a_pair_is_the_same_setting_as_a_number():
    layer = TorchScale(); layer.power = (2, 2)
    counterpart(Scale, TorchScale, lambda l: TorchScale(2), weights=dict(w='row'), buffers=dict(mean='mean'),
                without=('calls',), turn=torch.t)
    assert isinstance(from_torch(nn.Sequential(layer)).layers[0], Scale)
    layer.power = (2, 3)
    with pytest.raises(TypeError, match='its power'): from_torch(nn.Sequential(layer))

def test_what_torch_keeps_beside_it_is_refused():
    for name in ('calls', 'mean'):
        layer = TorchScale(); delattr(layer, name)
        with pytest.raises(TypeError, match=f'its own {name}'): from_torch(nn.Sequential(layer))
    layer = TorchScale(); layer.register_buffer('more', torch.zeros(1))
    with pytest.raises(TypeError, match='its own more'): from_torch(nn.Sequential(layer))

def test_what_ours_keeps_beside_it_is_refused():
    layer = scale(); layer.other = torch.ones(3)
    with pytest.raises(TypeError, match='to_torch: layer 0.*its own .*other'): to_torch(of(layer))

def test_dtypes_that_differ_are_refused():
    with pytest.raises(TypeError, match='to_torch: layer 0: dtypes differ'): to_torch(of(scale(shift=torch.rand(2, 3))))
    layer = TorchScale(); layer.late = nn.Parameter(torch.rand(2, 3).half())
    with pytest.raises(TypeError, match='from_torch: layer 1: dtypes differ'):
        from_torch(nn.Sequential(nn.ReLU(), layer))

def test_one_tensor_in_two_layouts_is_refused():
    w = torch.rand(3, 3)
    class Square(Scale): "Keeps its parameter as torch does."
    class TorchSquare(TorchScale): pass
    counterpart(Square, TorchSquare, weights=dict(w='row'), buffers=dict(mean='mean'), without=('calls',))
    square = Square(w); square.mean = torch.zeros(3)
    with pytest.raises(TypeError, match='to_torch: layer 1: a parameter is shared .* another layout'):
        to_torch(of(Lin(w, torch.zeros(3)), square))
    net = nn.Sequential(nn.Linear(3, 3), TorchSquare())
    net[1].row = net[0].weight
    with pytest.raises(TypeError, match='from_torch: layer 1: a parameter is shared'): from_torch(net)

def test_one_bias_may_belong_to_layers_of_two_layouts():
    b = torch.rand(3)
    class Shift(Op):
        rule,uses = Rule(lambda x, b: x + b, lambda g, out, x, b: (g, g.sum(0))),('b',)
        def __init__(self, b): self.b = b
    class TorchShift(nn.Module):
        def __init__(self): super().__init__(); self.b = nn.Parameter(torch.zeros(3))
        def forward(self, x): return x + self.b
    counterpart(Shift, TorchShift, weights=dict(b='b'))
    net = to_torch(of(Lin(torch.rand(2, 3), b), Shift(b)))
    assert net[0].bias is net[1].b and len(from_torch(net).params) == 2

def test_training_is_carried_over():
    class Mode(Relu): training = False
    class TorchMode(nn.ReLU): pass
    counterpart(Mode, TorchMode)
    net = to_torch(of(Mode(), Relu()))
    assert not net[0].training and net[1].training
    model = from_torch(net)
    assert model.layers[0].training is False and not hasattr(model.layers[1], 'training')
    net.train(); assert from_torch(net).layers[0].training is True

def test_no_random_number_is_drawn():
    counterpart(Scale, TorchScale, lambda l: TorchScale(), weights=dict(w='row'), buffers=dict(mean='mean'),
                without=('calls',), turn=torch.t)
    model,state = of(scale()),torch.get_rng_state()
    from_torch(to_torch(model))
    assert torch.equal(torch.get_rng_state(), state)

def test_the_nearest_class_counts():
    class Sub(Relu): pass
    class Other(nn.ReLU): pass
    counterpart(Sub, Other)
    assert type(to_torch(of(Sub()))[0]) is Other and type(to_torch(of(Relu()))[0]) is nn.ReLU
    class Third(Sub): pass
    assert type(to_torch(of(Third()))[0]) is Other
    assert type(from_torch(nn.Sequential(Other())).layers[0]) is Sub

@pytest.mark.parametrize('args, kwargs, error, words', [
    ((nn.ReLU, nn.ReLU), {}, TypeError, 'ours is ReLU, expected a subclass of fb_pass.modules.Module'),
    ((Relu, Relu), {}, TypeError, 'theirs is Relu, expected a subclass of torch.nn'),
    ((Relu(), nn.ReLU), {}, TypeError, 'ours is a Relu'),
    ((Relu, nn.ReLU), dict(weights={1: 'w'}), TypeError, 'weights is'),
    ((Relu, nn.ReLU), dict(buffers=dict(a=None)), TypeError, 'buffers is'),
    ((Relu, nn.ReLU), dict(without=(3,)), TypeError, 'without is'),
    ((Relu, nn.ReLU), dict(optional=('w',)), ValueError, 'optional is')])
def test_a_declaration_that_makes_no_sense(args, kwargs, error, words):
    before = dict(library._known)
    with pytest.raises(error, match=words): counterpart(*args, **kwargs)
    assert library._known == before

def test_what_has_no_counterpart_is_named_with_what_has_one():
    class Alone(Module):
        def forward(self, x): return x
        def bwd(self, out, x): pass
    with pytest.raises(TypeError, match='layer 0, Alone.., has no counterpart: expected .*Lin or .*Scale.*imported'):
        to_torch(of(Alone()))
    with pytest.raises(TypeError, match='layer 0, Hardtanh.*has no counterpart: expected .*Linear or .*TorchScale'):
        from_torch(nn.Sequential(nn.Hardtanh()))


def rand(*shape): return torch.rand(*shape, dtype=torch.float64)
def conv(**kw): return Conv2d(rand(2, 2, 3, 3), rand(2), **kw)
def seen(layer, *shape):
    layer(rand(*shape)) # which says whether these are rows or images
    return layer
LAYERS = {
    'activations': lambda: ([Lin(rand(4, 4), rand(4)), Sigmoid(), Tanh(), Silu(), Gelu(), Gelu('tanh')], (5, 4)),
    'softmax': lambda: ([Softmax()], (5, 4)), 'dropout': lambda: ([Dropout(.5)], (5, 4)),
    'norms': lambda: ([LayerNorm(rand(4), rand(4), 1e-3), LayerNorm(rand(4)), RmsNorm(rand(4))], (5, 4)),
    'batch norm of rows': lambda: ([seen(BatchNorm(rand(4), rand(4), 1e-3, .2), 3, 4)], (5, 4)),
    'batch norm of images': lambda: ([seen(BatchNorm(rand(2), rand(2)), 3, 2, 4, 4)], (5, 2, 6, 6)),
    'convolution': lambda: ([conv(padding=1), conv(stride=2), MaxPool2d(2, 1), Flatten(), Unflatten(2, 1, 1),
                             AvgPool2d(1)], (5, 2, 6, 6))}

@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('training', (True, False))
def test_layers_of_the_rooms_are_those_of_torch(name, training, tmp_path):
    layers,shape = LAYERS[name]()
    model = of(*layers).train(training)
    net = to_torch(model)
    again = from_torch(net)
    assert repr(again.layers) == repr(model.layers) and list(named_weights(again) if again.params else ()) == list(
        named_weights(net) if again.params else ())
    if name == 'dropout' and training: model.layers[0].p = net[0].p = again.layers[0].p = 0.
    x = rand(*shape)
    outs = [x, x, x.clone().requires_grad_()]
    for i in range(max(len(layers), 1)): outs = [o(t) for o,t in zip((layers[i], again.layers[i], net[i]), outs)]
    for got in outs[:2]: check_grad(got, outs[2].detach(), rtol=1e-10)
    if not again.params: return
    save_weights(net, tmp_path/'w'); load_weights(model, tmp_path/'w')
    for k,t in named_weights(net).items(): assert torch.equal(t, named_weights(model)[k]), k

def test_what_torch_has_no_setting_for():
    with pytest.raises(TypeError, match='the generator of a Dropout cannot be carried over'):
        to_torch(of(Dropout(.5, torch.Generator())))
    for layer in nn.LayerNorm((2, 2)), nn.BatchNorm1d(2, affine=False), nn.Softmax(0), nn.BatchNorm2d(2, momentum=None):
        with pytest.raises((TypeError, ValueError), match='from_torch|LayerNorm|BatchNorm'):
            from_torch(nn.Sequential(layer))

@pytest.mark.parametrize('layer, name', [(Lin(rand(3, 2), rand(2)), 'forward'), (Dropout(.5), 'draw'),
    (BatchNorm(rand(3), rand(3)), 'follow'), (BatchNorm(rand(3), rand(3)), 'by_batch'), (Gelu(), 'rule'),
    (Conv2d(rand(2, 2, 3, 3)), 'uses'), (Relu(), '__call__')])
def test_what_a_subclass_does_in_its_own_way_is_refused(layer, name):
    layer.__class__ = type('Own', (type(layer),), {name: property(lambda self: None)})
    with pytest.raises(TypeError, match=f'its own {name} cannot be carried over'): to_torch(of(layer))

@pytest.mark.parametrize('theirs, name', [(nn.Linear(3, 3), 'forward'), (nn.Conv2d(2, 2, 3), '_conv_forward'),
    (nn.BatchNorm1d(3), 'train'), (nn.ReLU(), '__call__')])
def test_what_a_subclass_of_torch_does_in_its_own_way_is_refused(theirs, name):
    theirs.__class__ = type('Own', (type(theirs),), {name: lambda self, *args: None})
    with pytest.raises(TypeError, match=f'its own {name} cannot be carried over'): from_torch(nn.Sequential(theirs))

def test_what_a_subclass_may_have_of_its_own():
    class Ours(Lin):
        "Another docstring."
        def __repr__(self): return 'ours'
    class Theirs(nn.Linear):
        def reset_parameters(self): nn.init.zeros_(self.weight)
        def extra_repr(self): return 'theirs'
    assert from_torch(to_torch(of(Ours(rand(3, 2), rand(2))))) and from_torch(nn.Sequential(Theirs(3, 2)))

def test_running_statistics_that_two_layers_share_stay_shared():
    one,two = BatchNorm(rand(3), rand(3)),BatchNorm(rand(3), rand(3))
    two.running_mean = one.running_mean
    net = to_torch(of(one, two))
    assert net[0].running_mean is net[1].running_mean and net[0].running_mean is not one.running_mean
    again = from_torch(net)
    assert again.layers[0].running_mean is again.layers[1].running_mean

def test_a_batch_norm_of_images_stays_one_before_it_is_called():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.BatchNorm1d(12))
    assert repr(to_torch(from_torch(net))) == repr(net)
