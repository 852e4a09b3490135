"Exercises on training in parallel: gradients of several ranks put together."
from .asking import ask, exercise, rand

def _shares(rows): return [n/sum(rows) for n in rows]
def _there(grads): return [g for g in grads if g is not None]

def _in_place(grads, rows):
    for g,n in zip(grads, rows):
        if n: g *= n/sum(rows)
    return sum(_there(grads))

@exercise('27.2', 'Write `joined(grads, rows)`, the gradient of the mean over the rows of all ranks.',
    'It is what `average_grads` does, and `accumulate` too. The formula does not ask where the parts were computed.',
    slips={
    'That is the mean of means: each rank counts the same, whether it has one row or a thousand.':
        lambda grads, rows: sum(_there(grads))/len(_there(grads)),
    'That is the mean of means, and the ranks without rows are counted, too.':
        lambda grads, rows: sum(_there(grads))/len(grads),
    'That is the sum of the means. The weights of the ranks have to add up to 1.':
        lambda grads, rows: sum(_there(grads)),
    'That is the gradient of the sum over all rows. The loss is their mean.':
        lambda grads, rows: sum(n*g for g,n in zip(grads, rows) if n),
    'The shares of the rows are right, but they add up to 1 already: nothing is left to divide.':
        lambda grads, rows: sum(n*g for g,n in zip(grads, rows) if n)/sum(rows)/len(rows)}, wrong=[
    ('as they were', _in_place)])
def joined(answer):
    rows,grads = [3, 0, 1, 4],[rand(2, 3), None, rand(2, 3), rand(2, 3)]
    want = sum(s*g for s,g in zip(_shares(rows), grads) if g is not None)
    before = [g if g is None else g.clone() for g in grads]
    got = answer(grads, rows)
    yield ask(got, want, 'the gradient', 'How much does a rank count that has 3 of 8 rows?')
    same = all(g is None or (g == b).all() for g,b in zip(grads, before))
    assert same, 'The result is right, but the given gradients are not as they were. `*=` and `+=` change a tensor.'
