"Train a small GPT with several seeds, by hand and by torch, into results/gpt.json."
import json, statistics, sys, time
from pathlib import Path

import torch, torch.nn.functional as F
from accuracy import console, machine, root, stored
from fastcore.script import call_parse
from fb_pass.gpt import ClippedAdamW, decode, encode, generate, get_text, gpt, warmup_cosine, windows
from fb_pass.training import dataloader, fit
from torch import nn

shape = dict(block=64, n_layer=4, n_head=4, width=128)
settings = dict(bs=12, lr_max=3e-3, lr_min=1e-4, warmup=100, every=250)
whole = 1_115_394 # characters

def new(vocab, seed, dtype=None, **kw):
    return gpt(vocab, **shape | kw, generator=torch.Generator().manual_seed(seed), dtype=dtype)

class TorchBlock(nn.Module):
    "A pre-norm block of torch's layers, without biases."
    def __init__(self, width, n_head):
        super().__init__()
        self.n_head = n_head
        self.norm1,self.norm2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        sizes = (width, 3*width), (width, width), (width, 4*width), (4*width, width)
        self.qkv,self.out,self.up,self.down = (nn.Linear(*s, bias=False) for s in sizes)
    def forward(self, x):
        heads = self.qkv(self.norm1(x)).unflatten(2, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

class TorchGpt(nn.Module):
    "The network of `fb_pass.gpt.gpt`, without biases, by torch's layers and autograd: `net(tokens, targ)` is the loss."
    def __init__(self, vocab, block, n_layer, n_head, width):
        super().__init__()
        self.table,self.places = nn.Embedding(vocab, width),nn.Parameter(torch.empty(block, width))
        self.blocks = nn.Sequential(*(TorchBlock(width, n_head) for _ in range(n_layer)))
        self.norm = nn.LayerNorm(width, bias=False)
    def logits(self, tokens): return self.norm(self.blocks(self.table(tokens) + self.places))@self.table.weight.t()
    def forward(self, tokens, targ): return F.cross_entropy(self.logits(tokens).flatten(0, 1), targ.flatten())

def names(n_layer):
    "Names of our parameters, each once, and of torch's."
    known = {'layers.0.weight': 'table.weight', 'layers.1.w': 'places'}
    for i in range(n_layer):
        a,b,block = f'layers.{2 + 2*i}.layers',f'layers.{3 + 2*i}.layers',f'blocks.{i}'
        known |= {f'{a}.0.weight': f'{block}.norm1.weight', f'{a}.1.w_qkv': f'{block}.qkv.weight',
                  f'{a}.1.w_out': f'{block}.out.weight', f'{b}.0.weight': f'{block}.norm2.weight',
                  f'{b}.1.w': f'{block}.up.weight', f'{b}.3.w': f'{block}.down.weight'}
    return known | {f'layers.{2 + 2*n_layer}.weight': 'norm.weight'}

def as_ours(net, name, t=None):
    "A parameter of torch's, or `t` in its place, in our layout: a linear layer of torch keeps its matrix transposed."
    t = net.get_parameter(name) if t is None else t
    return t.t() if isinstance(net.get_submodule(name.rpartition('.')[0]), nn.Linear) else t

def to_torch(model, n_layer, n_head):
    "The same network of torch's layers, with copies of the weights."
    ours = dict(model.named_params())
    table = ours['layers.0.weight']
    net = TorchGpt(len(table), model.block, n_layer, n_head, table.shape[1]).to(table.dtype)
    with torch.no_grad():
        for k,name in names(n_layer).items(): as_ours(net, name).copy_(ours[k])
    return net

def torch_optimizer(net):
    "AdamW whose decay spares vectors."
    ps = [*net.parameters()]
    groups = [dict(params=[p for p in ps if p.ndim > 1]), dict(params=[p for p in ps if p.ndim < 2], weight_decay=0.)]
    return torch.optim.AdamW(groups, betas=(.9, .99), weight_decay=.1, fused=True)

def torch_step(net, opt, xb, yb, lr):
    "A training step with autograd."
    for group in opt.param_groups: group['lr'] = lr
    loss = net(xb, yb)
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.)
    opt.step()
    opt.zero_grad()
    return loss.item()

def loaders(tokens, block, bs, every, seed):
    n,generator = int(.9*len(tokens)),torch.Generator().manual_seed(seed)
    train,valid = windows(tokens[:n], block),windows(tokens[n:], block, block)
    return dataloader(*train, bs, generator, batches=every), dataloader(*valid, 100)

def by_hand(model, dls, schedule, steps, every, sample=lambda: None):
    "Validation losses in the course of a training by hand."
    opt = ClippedAdamW(model.params)
    hist = fit(model, opt, *dls, steps//every, schedule, metric=None, stats_every=0, compiled=True, progress=False,
               after_epoch=lambda hist: (console.print(f"{len(hist.losses):6}  {hist.epochs[-1]['valid_loss']:.4f}"),
                                         sample()))
    return [row['valid_loss'] for row in hist.epochs]

def by_torch(net, dls, schedule, steps, every):
    "The same by torch."
    opt,losses = torch_optimizer(net),[]
    for epoch in range(steps//every):
        for i,(xb,yb) in enumerate(dls[0]): torch_step(net, opt, xb, yb, schedule(epoch*every + i))
        with torch.no_grad(): rows = [(len(xb), net(xb, yb).item()) for xb,yb in dls[1]]
        losses.append(sum(n*loss for n,loss in rows)/sum(n for n,_ in rows))
        console.print(f'{(epoch + 1)*every:6}  {losses[-1]:.4f}')
    return losses

@call_parse
def main(
    seeds:int=3, # Runs each way, with the seeds 0, 1, 2, ...
    steps:int=2000, # Steps of each run
    bs:int=12, # Windows in a batch
    threads:int=1, # Threads of torch; the order of its sums, and so the last bits, depend on them
    out:str=str(root/'results'/'gpt.json'), # Where to keep the results, after each run; an interrupted command goes on
):
    "Loss on the held-out tenth of the text over seeds, by hand and by torch, from equal weights, on equal batches."
    torch.set_num_threads(threads)
    text,vocab = get_text()
    if len(text) != whole: sys.exit('this needs the whole text; set FB_PASS_DATA to the folder that has it')
    tokens,every,path = encode(text, vocab),settings['every'],Path(out)
    schedule = warmup_cosine(settings['lr_max'], steps, settings['warmup'], settings['lr_min'])
    command = f"make gpt GPT='{' '.join(sys.argv[1:])}'" if sys.argv[1:] else 'make gpt'
    found = stored(path, dict(command=command, machine=machine(), steps=steps, **shape, **settings | dict(bs=bs),
                              by_hand=[], torch=[]))
    for way in 'by_hand', 'torch':
        for seed in range(len(found[way]), seeds):
            console.print(f'{way}, seed {seed}: steps and validation loss')
            model,dls = new(len(vocab), seed),loaders(tokens, shape['block'], bs, every, seed)
            generator = torch.Generator().manual_seed(seed)
            def sample(count=100):
                return decode(generate(model, encode('\n', vocab)[None], count, .8, generator)[0], vocab)
            begin = time.perf_counter()
            if way == 'by_hand': losses = by_hand(model, dls, schedule, steps, every, lambda: console.print(sample()))
            else: losses = by_torch(to_torch(model, shape['n_layer'], shape['n_head']), dls, schedule, steps, every)
            minutes = round((time.perf_counter() - begin)/60, 1)
            row = dict(seed=seed, minutes=minutes, valid=[round(v, 5) for v in losses])
            if way == 'by_hand': row['text'] = sample(600)
            found[way].append(row)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    for way in 'by_hand', 'torch':
        ends = [row['valid'][-1] for row in found[way][:seeds]]
        spread = f', spread {statistics.stdev(ends):.4f}' if len(ends) > 1 else ''
        console.print(f'{way:8} {len(ends)} seeds   mean {statistics.mean(ends):.4f}{spread}')
