"""
Trains loza-tiny from scratch, makes it a LoZA model, and measures what was kept. One GPU, minutes.

    DATA=folder OUT=folder BUDGET=480 python train_loza_tiny.py

DATA is what prepare_data.py made. Everything is timed by the clock: BUDGET seconds in all, so the number of
steps, and the last digits of every result, depend on the machine. OUT gets base/ and loza/ (the model before
and after), report.json and, at the end, exactly what was printed.
"""

import json
import math
import os
import random
import time
from multiprocessing import Value
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, IterableDataset

import tasks
from export import export
from model import Config, Model, rms, yarn_scale
from optimizer import Optimizer

START = time.time()
BUDGET = float(os.environ.get('BUDGET', '480'))
DATA, OUT = Path(os.environ['DATA']), Path(os.environ['OUT'])
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
TOKENS = int(os.environ.get('TOKENS', 65536))
ROWS = int(os.environ.get('EXAM_ROWS', 128))
WORKERS = int(os.environ.get('WORKERS', 13))
SEED = int(os.environ.get('SEED', 0))
TEXT_WEIGHT = 0.6
# Weights within answers, where what follows a look-up's first token counts 1.
ANSWER_WEIGHTS = {tasks.ANSWER: 1.0, tasks.COPY: 0.3, tasks.FIRST: 1.0, tasks.TWICE: 2.0}
# Of what the middle of the model has to know where two look-ups are made: the first one's result.
STOP_WEIGHT = 0.5
# Against memorising: in half of the sequences this share of the text's tokens is read as random ones.
NOISE = 0.15

# Shares of BUDGET at which things end.
BASE_END, CALIBRATION_END, INTERLEAVED_END, LOZA_END = map(float, os.environ.get('ENDS', '0.70 0.78 0.85 0.95').split())

# Lengths of a stage's sequences, the share of the base training at which it ends at the latest, and what
# its sequences are: look-ups are learned in drills first, and two of them in one step when one is known.
ONE, TWO = {'keys': 1, 'links': 1}, {'keys': 1, 'links': 1, 'aliases': 4}
STAGES = [
    ((256,), 0.22, dict(dense=True, drills=0.5, kinds=ONE, twice=False)),
    ((256,), 0.36, dict(dense=True, drills=0.6, kinds=TWO)),
    ((256, 512, 1024), 0.42, dict(drills=0.2, kinds=TWO)),
    ((512, 2048, 4096), 0.56, {}),
    ((1024, 4096, 8192), 0.86, {}),
    ((2048, 8192, 8192, 16384, 32768), 1.0, {}),
    ((4096, 8192), 1.0, {}),
]
CALIBRATION = len(STAGES) - 1
LAST = CALIBRATION - 1
EXAM_LENGTHS = [int(length) for length in os.environ.get('EXAM_LENGTHS', '4096 8192').split()]
LONG_EXAMS = [('passkey', length) for length in (1024, 16384, 32768) if length <= TOKENS]
YARN_FROM, YARN_FACTOR = 16384, 4.0


def clock():
    return time.time() - START


def say(*args):
    print(f'{clock():6.1f}', *args, flush=True)


class Sequences(IterableDataset):
    """Batches of TOKENS tokens of the current stage, which the trainer sets."""

    def __init__(self, texts, words, stage, seed):
        self.texts, self.words, self.stage, self.seed = texts, words, stage, seed

    def __iter__(self):
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(self.seed * 1000 + (worker.id if worker else 0))
        while True:
            stage = self.stage.value
            length = min(rng.choice(STAGES[stage][0]), TOKENS)
            parts = tasks.batch(rng, self.texts, self.words, length, TOKENS // length, **STAGES[stage][2])
            yield tuple(map(torch.from_numpy, parts))


def batches(texts, words, stage, seed):
    many = dict(num_workers=WORKERS, prefetch_factor=2) if WORKERS > 0 else {}
    loader = DataLoader(Sequences(texts, words, stage, seed), batch_size=None, pin_memory=DEVICE == 'cuda', **many)
    for parts in loader:
        yield [part.to(DEVICE, non_blocking=True) for part in parts]


def factor_of(length):
    return YARN_FACTOR if length >= YARN_FROM else 1.0


def noisy(ids, classes):
    """The inputs of a batch, with some of the text replaced."""
    rows = torch.rand(len(ids), 1, device=DEVICE) < 0.5
    hit = rows & (torch.rand(ids.shape, device=DEVICE) < NOISE) & (classes == tasks.TEXT)
    return torch.where(hit, torch.randint_like(ids, 7, Config.vocab), ids)[:, :-1]


def weighted(loss, classes, text_weight):
    """The loss of a batch: answers and text, each by its mean."""
    answer = torch.tensor([ANSWER_WEIGHTS.get(c, 0.0) for c in range(7)], device=DEVICE)[classes.long()]
    text = ((classes == tasks.TEXT) | (classes == tasks.FORM)).float()
    mean = lambda mask: (loss * mask).sum() / mask.sum().clamp(min=1)
    return mean(answer) + text_weight * mean(text)


class Progress:
    """Running means, of first tokens found by task, kept on the device and read now and then."""

    def __init__(self):
        self.first = torch.zeros(len(tasks.MIX) + 1, 2, device=DEVICE)
        self.stopped, self.rest, self.text = (torch.zeros(2, device=DEVICE) for _ in range(3))

    def add(self, loss, right, classes, kinds, stopped):
        first = ((classes == tasks.FIRST) | (classes == tasks.TWICE)).float()
        self.first.index_add_(0, kinds.long(), torch.stack([(right * first).sum(1), first.sum(1)], 1))
        rest = ((classes == tasks.ANSWER) | (classes == tasks.COPY)).float()
        self.rest += torch.stack([(right * rest).sum(), rest.sum()])
        self.stopped += stopped
        text = (classes == tasks.TEXT).float()
        self.text += torch.stack([(loss.detach() * text).sum(), text.sum()])

    def read(self):
        first, stopped, rest, text = (x.tolist() for x in (self.first, self.stopped, self.rest, self.text))
        self.__init__()
        mean = lambda pair: pair[0] / max(pair[1], 1)
        accuracy = {name: mean(first[i]) for i, (name, _) in enumerate(tasks.MIX)}
        accuracy |= {'first hop': mean(stopped), 'rest': mean(rest)}
        return accuracy, mean(text)


def train(model, stream, until, rates, check, stage=None, every=50):
    """
    Trains until the clock says `until`; rates(share of the time used) scales every learning rate. With a
    stage, goes on to the next one when every task is learned or when its time is over. When the loss
    of the validation text, check(), has risen, text counts half as much from then on (not before texts
    are long enough for it).
    """
    text_weight, best = TEXT_WEIGHT, math.inf
    optimizer, progress, begin, step = Optimizer(model.weights), Progress(), clock(), 0
    while clock() < until:
        share = (clock() - begin) / (until - begin)
        ids, classes, stops, kinds = next(stream)
        length = ids.shape[1] - 1
        loss, right = model.losses(ids, factor_of(length), noisy(ids, classes))
        stop_loss, found, places, real = model.stop_losses(stops[:, 1:])
        stop_loss = (stop_loss * real).sum() / real.sum().clamp(min=1)
        (weighted(loss, classes[:, 1:], text_weight) + STOP_WEIGHT * stop_loss).backward()
        optimizer.step(rates(share) * min(1, (step + 1) / 50))
        model.balance()
        twice = classes[:, 1:].flatten()[places] == tasks.TWICE
        progress.add(loss, right, classes[:, 1:], kinds, torch.stack([(found * twice).sum(), twice.sum()]))
        step += 1
        if step % (8 * every) == 0 and (stage is None or stage.value > 2):
            validation = check()
            if validation > best + 0.01:
                text_weight = max(text_weight / 2, 0.05)
            best = min(best, validation)
            say(f'validation {validation:.4f} text weight {text_weight}')
        if step % every == 0:
            accuracy, text = progress.read()
            if step % (2 * every) == 0 or step <= 4 * every:
                shown = ' '.join(f'{name} {value:.3f}' for name, value in accuracy.items())
                say(f'step {step} stage {stage.value if stage else "-"} T {length} {shown} text {text:.3f}')
            late = stage is not None and share > STAGES[stage.value][1]
            learned = stage is not None and stage.value < LAST - 1 and min(accuracy[name] for name, _ in tasks.MIX if name != 'alias' or stage.value > 0) > 0.97
            if stage is not None and stage.value < LAST and (late or learned):
                stage.value += 1
                say('stage', stage.value, STAGES[stage.value][0], 'at step', step, 'accuracy', accuracy)
    say('steps', step, 'tokens/s', round(step * TOKENS / (clock() - begin)))


class Exams:
    """The questions of every cell, made once; and their scores."""

    def __init__(self, texts, words):
        self.texts, self.words, self.made = texts, words, {}

    def get(self, task, length, rows):
        key = (task, length, rows)
        if key not in self.made:
            records = {'passkey': 4, 'alias': 8, 'magic': 12, 'lines': 32}[task]
            ids, spans = tasks.exam(length, self.texts, self.words, task, length, rows, records=records)
            self.made[key] = torch.from_numpy(ids).to(DEVICE), spans
        return self.made[key]

    # Gradients stay on in exams: without them every block would be compiled a second time.

    def score(self, model, task, length):
        """Share of answers that are right to the last token, and how many there were."""
        size = max(1, TOKENS // length)
        ids, spans = self.get(task, length, -(-ROWS // size) * size)
        right = torch.cat([model.losses(chunk, factor_of(length))[1] for chunk in ids.split(size)])
        right = right.cpu().numpy()
        # right[:, t] judges token t + 1.
        judged = [right[row, first - 1:end - 1].all() for row, first, end in spans]
        return float(np.mean(judged)), len(judged)

    def text(self, model, stream):
        """Mean loss of held-out text, in nats a token, in windows of up to 4,096 tokens."""
        length = min(4096, TOKENS)
        count = TOKENS // length
        stream = stream[:int(os.environ.get('TEXT_TOKENS', 10 ** 9))]
        tokens = torch.from_numpy(stream.astype(np.int64)).to(DEVICE)
        tokens = tokens[:(len(tokens) - 1) // TOKENS * TOKENS + 1]
        rows = tokens[:-1].view(-1, length)
        rows = torch.cat([rows, torch.cat([rows[1:, 0], tokens[-1:]])[:, None]], 1)
        return float(torch.cat([model.losses(chunk)[0].detach() for chunk in rows.split(count)]).mean())


def bigram_loss(train, held_out):
    """Nats a token of the best mixture of bigram, unigram and uniform counts (chosen on held-out text)."""
    V = Config.vocab
    pairs = torch.from_numpy(train.astype(np.int64)).to(DEVICE)
    counts = torch.bincount(pairs[:-1] * V + pairs[1:], minlength=V * V).view(V, V).double()
    unigram = counts.sum(0) / counts.sum()
    test = torch.from_numpy(held_out.astype(np.int64)).to(DEVICE)
    rows = counts[test[:-1]]
    seen, total = rows.gather(1, test[1:, None])[:, 0], rows.sum(1)
    base = 0.999 * unigram[test[1:]] + 0.001 / V
    # Absolute discounting cannot beat this by much: Dirichlet smoothing towards the unigram.
    return min(float(-((seen + k * base) / (total + k)).log().mean()) for k in (10, 30, 100, 300, 1000, 3000))


def calibrate(model, stream, until):
    """
    Trains one alpha for each attention, all else frozen: the mixed model's last hidden states have to
    stay near the full model's where answers are given, and alphas cost. Returns the alphas.
    """
    c, n = model.c, model.c.attentions
    alphas = torch.ones(n, device=DEVICE, requires_grad=True)
    optimizer = torch.optim.Adam([alphas], lr=0.02)
    penalty, step = 0.05, 0
    while clock() < until and step < 200:
        ids, classes, _, _ = next(stream)
        length = ids.shape[1] - 1
        factor = factor_of(length)
        mask = torch.isin(classes[:, 1:], torch.tensor([tasks.ANSWER, tasks.FIRST, tasks.TWICE], device=DEVICE)).flatten().float()
        teacher = rms(model.hidden(ids[:, :-1].contiguous(), factor), model.weights['norm'], c.eps).float().detach()
        model.alphas = alphas
        student = rms(model.hidden(ids[:, :-1].contiguous(), factor), model.weights['norm'], c.eps).float()
        apart = ((student - teacher).square().mean(-1) * mask).sum() / mask.sum().clamp(min=1)
        alphas.grad, = torch.autograd.grad(apart + penalty * alphas.mean(), [alphas])
        optimizer.step()
        with torch.no_grad():
            alphas.clamp_(0, 1)
        model.alphas = None
        step += 1
        if step % 20 == 0:
            median = float(alphas.median())
            say('calibrate', step, 'apart', round(apart.item(), 5), 'penalty', penalty, [round(a, 3) for a in alphas.tolist()])
            if step >= 60 and not 0.05 < median < 0.95:
                penalty *= 2 if median >= 0.95 else 0.5
    return alphas.tolist()


class Report:
    def __init__(self, model, exams, data):
        self.model, self.exams, self.data, self.rows = model, exams, data, {}

    def row(self, name, pattern, cells, text=True):
        self.model.pattern = pattern
        scores = {f'{task}@{length}': self.exams.score(self.model, task, length) for task, length in cells}
        losses = {key: self.exams.text(self.model, self.data[key]) for key in ('held_out', 'validation')} if text else {}
        self.rows[name] = {'pattern': pattern, 'scores': {k: s for k, (s, _) in scores.items()},
                           'counts': {k: count for k, (_, count) in scores.items()}, 'text': losses}
        shown = ' '.join(f'{k} {s:.3f}' for k, (s, _) in scores.items())
        say('ROW', name, pattern, shown, {k: round(v, 4) for k, v in losses.items()})
        (OUT / 'report.json').write_text(json.dumps(self.rows, indent=1))
        return self.rows[name]['scores']


def main():
    torch.manual_seed(SEED)
    OUT.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(DATA / 'tokenizer.json'))
    data = dict(np.load(DATA / 'data.npz'))
    words = tasks.Words(tokenizer, json.loads((DATA / 'words.json').read_text()))
    texts, held_out = tasks.Texts(data['train'], tokenizer), tasks.Texts(data['held_out'], tokenizer)
    stage = Value('i', 0)
    stream = batches(texts, words, stage, SEED + 1)
    first = next(stream)
    say('data ready', tuple(first[0].shape))
    config = Config(**json.loads(os.environ.get('CONFIG', '{}')))
    model = Model(config, DEVICE)
    n = config.attentions
    full, none, even, odd = '0' * n, '1' * n, '10' * (n // 2), '01' * (n // 2)
    say('parameters', sum(w.numel() for w in model.weights.values()))

    exams, lengths = Exams(held_out, words), EXAM_LENGTHS
    check = lambda: exams.text(model, data['validation'])
    train(model, stream, BASE_END * BUDGET, lambda share: min(1, (1 - share) / 0.5), check, stage)
    export(OUT / 'base', model.state(), config)
    base = model.state()
    report = Report(model, exams, data)
    cells = [(task, length) for task in tasks.TASKS for length in lengths]
    say('bigram', {key: round(bigram_loss(data['train'], data[key]), 4) for key in ('held_out', 'validation')})
    report.row('full', full, cells + LONG_EXAMS)
    by_parity = {p: sum(report.row(f'interleaved {p}', p, cells).values()) for p in (even, odd)}
    report.row('all streaming', none, cells)

    stage.value = CALIBRATION
    model.pattern = full
    alphas = calibrate(model, stream, CALIBRATION_END * BUDGET)
    single = {}
    for i in range(n):
        pattern = ''.join('1' if j == i else '0' for j in range(n))
        single[i] = sum(report.row(f'one {i}', pattern, [('passkey', lengths[0]), ('alias', lengths[0])], text=False).values())
    # The lowest alphas stream; between equal ones the attention whose loss costs less.
    order = sorted(range(n), key=lambda i: (round(alphas[i], 3), -single[i], i))
    calibrated = ''.join('1' if i in order[:n // 2] else '0' for i in range(n))
    say('CALIBRATED', calibrated, [round(a, 4) for a in alphas])
    report.row('calibrated', calibrated, cells)

    worse = min(by_parity, key=by_parity.get)
    cooling = lambda share: 0.3 * (1 - share)
    model.pattern = worse
    stage.value = LAST - 1
    train(model, stream, INTERLEAVED_END * BUDGET, cooling, check)
    report.row('interleaved, trained', worse, cells)
    model.restore(base)
    model.pattern = calibrated
    stage.value = LAST
    train(model, stream, LOZA_END * BUDGET, cooling, check)
    export(OUT / 'loza', model.state(), config, calibrated)
    report.row('calibrated, trained', calibrated, cells + LONG_EXAMS)

    model.restore(base)
    halves = [p for p in (format(i, f'0{n}b') for i in range(2 ** n)) if p.count('1') == n // 2]
    for pattern in halves:
        if clock() > 0.98 * BUDGET:
            break
        report.row(f'half {pattern}', pattern, [('passkey', lengths[0]), ('alias', lengths[0])], text=False)
    say('done')
    os._exit(0)


if __name__ == '__main__':
    main()
