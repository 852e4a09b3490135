"""Random models in every style of the package against torch's autograd and optimizers, in float64.

What differs by more than the tolerance is computed once more with 80 digits, which say whether it is a rounding.
"""
import math, random, sys

import mpmath, numpy as np, torch, torch.nn.functional as F
from fastcore.script import call_parse
from fb_pass import closures
from fb_pass.autograd import LinFunction, MseFunction, ReluFunction
from fb_pass.bridges import to_function
from fb_pass.gradients import Rule, add_grad
from fb_pass.modules import Lin, Model, Module, Mse, Op, Relu
from fb_pass.training import SGD, AdamW, CrossEntropy, cross_entropy_rule, dataloader, fit, one_cycle
from rich.progress import track

TOLERANCE = 1e-10 # largest difference, as a share of the largest entry
OPTIMIZERS = dict(SGD=SGD, AdamW=AdamW)

class Case:
    "A random model with data, optimizer and schedule, all from one seed."
    def __init__(self, seed):
        self.seed,self.r,self.gen,self.pairs = seed,random.Random(seed),torch.Generator().manual_seed(seed),[]
        pick = self.r.choice
        self.style,n,width = pick([*STYLES]),pick((1, 2, 5, 8)),self.width()
        self.x = self.rand(n, width)*pick((.1, 1., 3.))
        if pick((True, *4*[False])): self.x[0] = 0 # a blank example: with biases of zero at the kink of ReLU
        self.layers,width = self.row(width, 2)
        self.loss = 'mean_square' if self.style == 'closures' else pick(('mse', 'cross_entropy'))
        last = 1 if self.loss == 'mse' else self.width()
        self.layers.append(self.lin(width, last))
        labels = torch.randint(last, (n,), generator=self.gen)
        self.y = dict(mse=self.rand(n), mean_square=self.rand(n, last), cross_entropy=labels)[self.loss]
        self.batches = [o for o in dataloader(self.x, self.y, self.r.randint(1, n))]
        self.epochs = self.r.randint(1, 3)
        self.optimizer,lr = 'SGD' if self.style == 'closures' else pick([*OPTIMIZERS]),10**self.r.uniform(-3, -1.3)
        more = dict(SGD=dict(momentum=pick((0., .9))), AdamW=dict(betas=(pick((0., .9)), pick((.9, .999)))))
        more = {} if self.style == 'closures' else dict(weight_decay=pick((0., .1))) | more[self.optimizer]
        self.settings = dict(lr=lr) | more
        self.steps = self.epochs*len(self.batches)
        self.schedule = pick(('constant', 'decay', *['one_cycle']*(self.steps > 1)))

    def width(self): return self.r.choice((1, 1, 2, 3, 5))
    def rand(self, *shape): return torch.randn(shape, generator=self.gen, dtype=torch.float64)

    def lin(self, n_in, n_out):
        "A linear layer with parameters of its own, or with those of another layer."
        known = [i for i,(w,_) in enumerate(self.pairs) if w.shape == (n_in, n_out)]
        if known and self.r.random() < .3: return 'lin', self.r.choice(known)
        self.pairs.append((self.rand(n_in, n_out)/math.sqrt(n_in), self.rand(n_out)*self.r.choice((0., 1.))))
        return 'lin', len(self.pairs) - 1

    def row(self, width, depth):
        "Layers in a row, as pairs of a kind and what belongs to it, and the width at the end."
        layers = []
        for _ in range(self.r.randint(1, 3)):
            kind,start = self.r.choice(('lin', 'lin', 'relu', 'sigmoid', *('row', 'sum')[:2*depth])),width
            if kind == 'lin':
                width = self.width()
                layers.append(self.lin(start, width))
            elif kind in ('row', 'sum'):
                inside,width = self.row(width, depth - 1)
                if kind == 'sum' and width != start: inside,width = [*inside, self.lin(width, start)],start
                layers.append((kind, inside))
            else: layers.append((kind, None))
        return layers, width

    def lr(self, step):
        "The learning rate of a step, as the package has it."
        top = self.settings['lr']
        if self.schedule == 'one_cycle': return one_cycle(top, self.steps)(step)
        return top/(1 + step) if self.schedule == 'decay' else top

    def runs(self): return [o for _ in range(self.epochs) for o in self.batches]

    def found(self, loss, grads, losses, lrs, params):
        "All that is compared, by name."
        names = [f'{k}{i}' for i in range(len(self.pairs)) for k in 'wb']
        grads = zip(('x', *names), grads, strict=True)
        res = {'the loss': loss} | {f'the gradient of {k}': g for k,g in grads}
        res |= {'the losses of the training': losses, 'the learning rates': lrs}
        return res | {f'{k} after the training': p for k,p in zip(names, params, strict=True)}

def run(layers, x, pairs, ops):
    "The output of the layers, computed by the functions `ops`."
    for kind,what in layers:
        if kind == 'lin': x = ops['lin'](x, *pairs[what])
        elif kind == 'row': x = run(what, x, pairs, ops)
        elif kind == 'sum': x = x + run(what, x, pairs, ops)
        else: x = ops[kind](x)
    return x

# The styles of the package

class Row(Module):
    "Layers in a row, as a layer."
    def __init__(self, layers): self.layers = layers
    def forward(self, inp):
        for l in self.layers: inp = l(inp)
        return inp
    def bwd(self, out, inp):
        for l in reversed(self.layers): l.backward()

class Sum(Row):
    "Adds its input to what the layers make of it."
    def forward(self, inp): return inp + super().forward(inp)
    def bwd(self, out, inp):
        add_grad(self.layers[-1].out, out.g)
        super().bwd(out, inp)
        add_grad(inp, out.g)

class Sigmoid(Op):
    "A layer that is made from a rule."
    rule = Rule(torch.sigmoid, lambda g, out, inp: g*out*(1 - out))

def by_modules(case):
    pairs = [[t.clone() for t in o] for o in case.pairs]
    kinds = dict(lin=lambda i: Lin(*pairs[i]), relu=lambda _: Relu(), sigmoid=lambda _: Sigmoid(),
                 row=lambda inside: Row(made(inside)), sum=lambda inside: Sum(made(inside)))
    def made(layers): return [kinds[kind](what) for kind,what in layers]
    model = Model.from_layers(made(case.layers), dict(mse=Mse, cross_entropy=CrossEntropy)[case.loss]())
    x,params = case.x.clone(),[t for o in pairs for t in o]
    loss = model(x, case.y)
    model.backward()
    grads = [t.g for t in (x, *params)]
    opt = OPTIMIZERS[case.optimizer](model.params, **case.settings)
    hist = fit(model, opt, case.batches, case.batches, case.epochs, case.lr, metric=None, stats_every=0, progress=False)
    return case.found(loss, grads, hist.losses, hist.lrs, params)

FUNCTIONS = dict(lin=LinFunction.apply, relu=ReluFunction.apply, mse=MseFunction.apply,
                 sigmoid=to_function(Sigmoid.rule, 'SigmoidFunction').apply,
                 cross_entropy=to_function(cross_entropy_rule, 'CrossEntropyFunction').apply)

def by_functions(case):
    "Our functions under torch's autograd, and our optimizer."
    def stepper(params):
        ours = [p.detach() for p in params] # the same memory, without autograd's history, which our optimizers refuse
        opt = OPTIMIZERS[case.optimizer](ours, **case.settings)
        def step(k):
            for p,own in zip(params, ours): own.g = p.grad
            opt.lr = case.lr(k)
            opt.step()
            return opt.lr
        return step
    return by_autograd(case, FUNCTIONS, stepper)

class ClosureSum(closures.Layer):
    "Adds its input to what a layer makes of it."
    def __init__(self, inside): self.inside,self.parameters = inside,inside.parameters
    def forward(self, X):
        Y,back = self.inside.forward(X)
        return X + Y, lambda Yg: Yg + back(Yg)

def by_closures(case):
    linears = [closures.Linear(*w.shape) for w,_ in case.pairs]
    params = [p for l in linears for p in (l.weights, l.bias)]
    for p,t in zip(params, [t for o in case.pairs for t in o]): p.tensor = t.numpy().copy()
    def sequence(inside): return closures.Sequential(*[kinds[kind](what) for kind,what in inside])
    kinds = dict(lin=lambda i: linears[i], relu=lambda _: closures.Relu(), sigmoid=lambda _: closures.Sigmoid(),
                 row=sequence, sum=lambda inside: ClosureSum(sequence(inside)))
    model,opt = sequence(case.layers),closures.SGDOptimizer(**case.settings)
    out,back = model.forward(case.x.numpy())
    loss,g = closures.mse_loss(out, case.y.numpy())
    grads = [back(g), *(p.gradient for p in params)]
    for p in params: p.clear()
    learner,losses,lrs = closures.Learner(model, closures.mse_loss, opt),[],[]
    for k,(xb,yb) in enumerate(case.runs()):
        opt.lr = case.lr(k)
        lrs.append(opt.lr)
        losses.append(learner.fit_batch(xb.numpy(), yb.numpy()))
    return case.found(loss, grads, losses, lrs, [p.tensor for p in params])

STYLES = dict(modules=by_modules, functions=by_functions, closures=by_closures)

# The references

TORCH = dict(lin=lambda x, w, b: F.linear(x, w.t(), b), relu=F.relu, sigmoid=F.sigmoid, mean_square=F.mse_loss,
             mse=lambda out, y: F.mse_loss(out, y[:,None]), cross_entropy=F.cross_entropy)

def torch_stepper(case, params):
    "Steps of torch's optimizer, with torch's schedule; each returns the learning rate that it took."
    opt,lr = getattr(torch.optim, case.optimizer)(params, **case.settings),case.settings['lr']
    schedules = dict(constant=lambda: torch.optim.lr_scheduler.ConstantLR(opt, 1.),
                     decay=lambda: torch.optim.lr_scheduler.LambdaLR(opt, lambda k: 1/(1 + k)),
                     one_cycle=lambda: torch.optim.lr_scheduler.OneCycleLR(opt, lr, case.steps, cycle_momentum=False))
    schedule = schedules[case.schedule]()
    def step(k):
        lr = opt.param_groups[0]['lr']
        opt.step()
        if k < case.steps - 1: schedule.step()
        return lr
    return step

def by_autograd(case, ops=TORCH, stepper=None):
    "Gradients by torch's autograd."
    pairs = [[t.clone().requires_grad_() for t in o] for o in case.pairs]
    x,params = case.x.clone().requires_grad_(),[t for o in pairs for t in o]
    def loss_of(x, y): return ops[case.loss](run(case.layers, x, pairs, ops), y)
    loss = loss_of(x, case.y)
    grads = torch.autograd.grad(loss, [x, *params])
    step,losses,lrs = stepper(params) if stepper else torch_stepper(case, params),[],[]
    for k,(xb,yb) in enumerate(case.runs()):
        now = loss_of(xb, yb)
        for p,g in zip(params, torch.autograd.grad(now, params)): p.grad = g
        losses.append(now.item())
        lrs.append(step(k))
    return case.found(loss, grads, losses, lrs, params)

exp,log = (np.frompyfunc(f, 1, 1) for f in (mpmath.exp, mpmath.log))
NUDGE = mpmath.mpf(10)**-30 # for differences; the kink of ReLU is left alone, where torch takes the slope on its left
EXACT = dict(lin=lambda x, w, b: x@w + b, relu=lambda x: x*(x > 1e-20), sigmoid=lambda x: 1/(1 + exp(-x)),
             mse=lambda out, y: ((out[:,0] - y)**2).mean(), mean_square=lambda out, y: ((out - y)**2).mean(),
             cross_entropy=lambda out, y: (log(exp(out).sum(1)) - out[range(len(y)),y]).mean())

def many_digits(t): return np.frompyfunc(mpmath.mpf, 1, 1)(t.numpy()) if t.is_floating_point() else t.numpy()

@mpmath.workdps(80)
def exactly(case, lrs):
    "Gradients by differences, with so many digits that their error is far below any rounding of float64."
    pairs = [[many_digits(t) for t in o] for o in case.pairs]
    x,y,params = many_digits(case.x),many_digits(case.y),[t for o in pairs for t in o]
    def loss_of(x, y): return EXACT[case.loss](run(case.layers, x, pairs, EXACT), y)
    def gradient(p, x, y):
        g = np.empty_like(p)
        for i,value in np.ndenumerate(p):
            p[i] = value + NUDGE; up = loss_of(x, y)
            p[i] = value - NUDGE; g[i] = (up - loss_of(x, y))/(2*NUDGE)
            p[i] = value
        return g
    loss,grads,losses = loss_of(x, y),[gradient(p, x, y) for p in (x, *params)],[]
    means,squares = [[0*p for p in params] for _ in range(2)]
    decay,(beta1, beta2) = case.settings.get('weight_decay', 0.),case.settings.get('betas', (0., 0.))
    for k,(lr,batch) in enumerate(zip(lrs, case.runs(), strict=True)):
        xb,yb = map(many_digits, batch)
        losses.append(loss_of(xb, yb))
        gs = [gradient(p, xb, yb) for p in params]
        for i,(p,g) in enumerate(zip(params, gs)):
            if case.optimizer == 'SGD':
                means[i] = case.settings.get('momentum', 0.)*means[i] + g + decay*p
                p -= lr*means[i]
                continue
            means[i],squares[i] = beta1*means[i] + (1 - beta1)*g,beta2*squares[i] + (1 - beta2)*g**2
            mean,square = means[i]/(1 - mpmath.mpf(beta1)**(k + 1)),squares[i]/(1 - mpmath.mpf(beta2)**(k + 1))
            p *= 1 - lr*decay
            p -= lr*mean/(np.frompyfunc(mpmath.sqrt, 1, 1)(square) + 1e-8)
    return case.found(loss, grads, losses, lrs, params)

# The comparison

def array(o): return np.atleast_1d(o.detach() if isinstance(o, torch.Tensor) else o)

def apart(got, want):
    with np.errstate(invalid='ignore'): return abs(array(got) - array(want)).max()

def fits(got, want): return got is not None and np.shape(got) == np.shape(want) and array(got).dtype == np.float64

def off(got, want):
    "Largest difference, as a share of the largest entry of `want`."
    worst,scale = apart(got, want),abs(array(want)).max()
    return worst/scale if scale else math.inf if worst else 0.

def compare(case):
    "The largest relative difference, how often more digits had to settle it, and what is wrong, in words."
    while not np.isfinite((theirs := by_autograd(case))['the losses of the training']).all(): case.settings['lr'] /= 10
    try: ours = STYLES[case.style](case)
    except Exception as e: return 0., 0, [f'{type(e).__name__}: {e}']
    worst,settled,wrong,truth = 0.,0,[],None
    for k,want in theirs.items():
        if not fits(ours[k], want): wrong.append(f'{k} is {ours[k]}, and {want} by torch')
        elif (d := off(ours[k], want)) <= TOLERANCE: worst = max(worst, d)
        else:
            truth = truth or exactly(case, theirs['the learning rates'])
            rounding = max(abs(array(o)).max() for o in truth.values())*1e-14
            mine,torchs = (float(apart(o, truth[k])) for o in (ours[k], want))
            if mine <= 10*torchs + rounding: settled += 1
            else: wrong.append(f'{k} differs by {d:.1g} of its largest entry: off by {mine:.1g}, torch by {torchs:.1g}')
    return worst, settled, wrong

@call_parse
def main(
    models:int=1000, # How many random models
    seed:int=0, # The first one is made from this seed, the others from those that follow
):
    "Compare random models of the package with torch. Exits with 1 if anything differs."
    torch.set_num_threads(1) # small tensors
    worst = settled = failed = steps = 0
    for case in track(map(Case, range(seed, seed + models)), total=models, description='models'):
        d,s,wrong = compare(case)
        worst,settled,failed,steps = max(worst, d),settled + s,failed + bool(wrong),steps + case.steps
        for o in wrong: print(f'{case.style}, --models 1 --seed {case.seed}: {o}')
    print(f'{models:,} models and as many training runs, {steps:,} steps: {failed:,} differ from torch.\nThe largest '
          f'relative difference is {worst:.1e}, {TOLERANCE:.0e} is allowed; {settled:,} larger ones are roundings.')
    sys.exit(bool(failed))
