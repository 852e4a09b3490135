"Train the convolutional network with several seeds, by hand and by torch, into results/cnn.json."
import json, statistics, sys
from functools import partial
from pathlib import Path

import accuracy, torch
from accuracy import console, loaders, machine, root, stored
from fastcore.script import call_parse
from fb_pass.convolution import cnn
from fb_pass.datasets import get_data
from fb_pass.library import to_torch
from fb_pass.normalization import normalize
from fb_pass.training import softmax
from rich.progress import Progress

settings = dict(bs=128, lr_max=0.01, weight_decay=0.1)

def new(seed): return cnn(torch.Generator().manual_seed(seed))

class Counted:
    "The batches, with a call after each; `fit` goes through them once in each epoch."
    def __init__(self, dl, advance): self.dl, self.advance = dl, advance
    def __len__(self): return len(self.dl)
    def __iter__(self):
        for batch in self.dl:
            yield batch
            self.advance()

def by_hand(data, seed, epochs, advance=lambda: None):
    "Validation accuracy after training with gradients and optimizer of ours, and the model."
    model = new(seed)
    watched = partial(Counted, advance=advance)
    return accuracy.by_hand(model, data, seed, epochs, **settings, watched=watched, compiled=True), model

def by_torch(data, seed, epochs, advance=lambda: None):
    "The same with nothing but torch's layers, autograd, optimizer and schedule."
    net = to_torch(new(seed))
    return accuracy.by_torch(net, data, seed, epochs, **settings, watched=partial(Counted, advance=advance)), net

def figures(model, x, targ, pixels, count=12):
    "What the pictures show: the filters of the first layer, and the wrong answers that the network was surest of."
    with torch.no_grad(): probs = softmax(accuracy.scores(to_torch(model), x))
    sure, said = probs.max(1)
    wrong = (said != targ).nonzero()[:,0]
    wrong = wrong[sure[wrong].argsort(descending=True)][:count]
    rows = [dict(label=targ[i].item(), said=said[i].item(), sure=round(sure[i].item(), 4),
                 pixels=pixels[i].long().tolist()) for i in wrong]
    filters = model.layers[1].w[:,0]
    return dict(filters=[[[round(v, 4) for v in row] for row in f] for f in filters.tolist()], wrong=rows)

def spread(accs): return statistics.stdev(accs) if len(accs) > 1 else None

def kept(path, epochs):
    return stored(path, dict(command='make cnn', machine=machine(), epochs=epochs, **settings, by_hand=[], torch=[]))

def store(path, found):
    for k in ('by_hand', 'torch'):
        if found[k]: found |= {f'{k}_mean': statistics.mean(found[k]), f'{k}_spread': spread(found[k])}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found) + '\n', encoding='utf-8')

@call_parse
def main(
    seeds:int=5, # Runs, with the seeds 0, 1, 2, ...
    epochs:int=5, # How often each run goes through the training digits
    threads:int=1, # Threads of torch; the order of its sums, and so the last bits, depend on them
    out:str=str(root/'results'/'cnn.json'), # Where to keep the results, after each run; an interrupted command goes on
):
    "Accuracy on the 10,000 validation digits over seeds, by hand and by torch, from equal weights, on equal batches."
    torch.set_num_threads(threads)
    x_train, y_train, pixels, y_valid = get_data()
    if len(x_train) != 50_000: sys.exit('this needs all of MNIST; set FB_PASS_DATA to the folder that has it')
    mean, std = x_train.mean(), x_train.std()
    data = normalize(x_train, mean, std), y_train, normalize(pixels, mean, std), y_valid
    path, found = Path(out), kept(Path(out), epochs)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for k, train in (('by_hand', by_hand), ('torch', by_torch)):
            for seed in range(seeds):
                if len(found[k]) > seed: continue
                bar = progress.add_task(f'seed {seed}, {k}', total=epochs*len(loaders(data, seed, settings['bs'])[0]))
                reached, model = train(data, seed, epochs, lambda: progress.advance(bar))
                progress.remove_task(bar)
                found[k].append(reached)
                if (k, seed) == ('by_hand', 0): found['figures'] = figures(model, data[2], y_valid, pixels*256)
                store(path, found)
                console.print(f'seed {seed}   {k:8}   {reached:.2%}')
    for k in ('by_hand', 'torch'):
        accs = found[k][:seeds]
        console.print(f'{k:8} {len(accs)} seeds   mean {statistics.mean(accs):.2%}, spread {spread(accs) or 0:.2%}')
