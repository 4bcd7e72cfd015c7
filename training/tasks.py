"""Sequences that teach a model to look things up: text with records in it, then questions.

Every token has a class, which decides what it counts in the loss:
NONE (its value cannot be known, or padding), TEXT, FIRST (the first token of what an answer looks up: the
later ones can be found by the ones before them) and ANSWER (those later ones), TWICE (FIRST of two look-ups
in one step), COPY (the rest of an answer) and FORM (the rest of a record and of a question). Beside its
class a FIRST or TWICE token has a stop: what the first look-up finds. Other stops are 0.
"""

import math
import random

import numpy as np

NONE, TEXT, ANSWER, FORM, COPY, FIRST, TWICE = range(7)
BOS, EOS, PAD, USER, ASSISTANT = 1, 2, 3, 5, 6


class Words:
    """Token ids of the small texts that records and questions are made of, encoded once."""

    def __init__(self, tokenizer, names):
        self.tokenizer, self.known = tokenizer, {}
        self.nouns, self.adjectives, self.others = names['nouns'], names['adjectives'], names['others']

    def __call__(self, text):
        ids = self.known.get(text)
        if ids is None:
            ids = self.known[text] = self.tokenizer.encode(text).ids
        return ids

    def names(self, rng, count):
        """`count` different names: mostly nouns that are one token, some frequent words."""
        rare = min(count // 3, rng.randint(0, count)) if rng.random() < 0.4 else 0
        rare = max(rare, count - len(self.nouns))
        chosen = rng.sample(self.nouns, count - rare) + rng.sample(self.others, rare)
        rng.shuffle(chosen)
        return chosen


class Pieces:
    """A list of token runs with their classes and stops."""

    def __init__(self):
        self.ids, self.classes, self.stops = [], [], []

    def add(self, ids, kind, stop=0):
        self.ids.extend(ids)
        self.classes.extend([kind] * len(ids))
        self.stops.extend([stop] * len(ids))
        return self

    def found(self, ids, stop=None):
        """What an answer looks up, with `stop` by the way."""
        self.add(ids[:1], FIRST if stop is None else TWICE, ids[0] if stop is None else stop)
        return self.add(ids[1:], ANSWER)

    def join(self, other):
        self.ids.extend(other.ids)
        self.classes.extend(other.classes)
        self.stops.extend(other.stops)
        return self

    def fit(self, length):
        """`length` tokens: cut, or filled with padding."""
        del self.ids[length:], self.classes[length:], self.stops[length:]
        return self.add([PAD] * (length - len(self)), NONE)

    def __len__(self):
        return len(self.ids)


def digits(rng, count):
    return ''.join(rng.choice('0123456789') for _ in range(count))


# Each task gives (records, queries): Pieces to hide in a text, and (question ids, answer Pieces).

def pass_keys(words, rng, count):
    names = words.names(rng, count)
    records, queries = [], []
    for name in names:
        key = words(digits(rng, 5))
        records.append(Pieces().add(words(f' [{name}:'), FORM).add(key, NONE).add(words(']'), FORM))
        answer = Pieces().add(words(f'{name}:'), COPY).found(key).add([EOS], COPY)
        queries.append((words(f'What is the pass key of {name}?'), answer))
    return records, queries


def aliases(words, rng, count):
    """Pass keys, and other names that stand for them: two look-ups in one step."""
    half = max(count // 2, 1)
    names = words.names(rng, 2 * half)
    direct, other = names[:half], names[half:]
    records, queries = [], []
    for name, alias in zip(direct, other):
        key = words(digits(rng, 5))
        records.append(Pieces().add(words(f' [{name}:'), FORM).add(key, NONE).add(words(']'), FORM))
        records.append(Pieces().add(words(f' [{alias}='), FORM).add(words(name), NONE).add(words(']'), FORM))
        answer = Pieces().add(words(f'{alias}>'), COPY).found(key, words(name)[0]).add([EOS], COPY)
        queries.append((words(f'What is the pass key behind {alias}?'), answer))
    return records, queries


def links(words, rng, count):
    """Names that stand for names: the first look-up of an alias alone."""
    half = max(count // 2, 1)
    names = words.names(rng, 2 * half)
    records, queries = [], []
    for name, alias in zip(names[:half], names[half:]):
        found = words(name)
        records.append(Pieces().add(words(f' [{alias}='), FORM).add(found, NONE).add(words(']'), FORM))
        answer = Pieces().add(words(f'{alias}='), COPY).found(found).add([EOS], COPY)
        queries.append((words(f'Who is behind {alias}?'), answer))
    return records, queries


def magic_numbers(words, rng, count):
    """RULER's needles with one or several keys in a question."""
    names = words.names(rng, count)
    values = [words(digits(rng, 7)) for _ in names]
    records = [Pieces().add(words(f' One of the special magic numbers for {name} is: '), FORM)
               .add(value, NONE).add(words('.'), FORM) for name, value in zip(names, values)]
    queries, i = [], 0
    while i < count:
        size = rng.choice([1, 1, 2, 4])
        group = list(zip(names, values))[i:i + size]
        i += size
        answer = Pieces()
        for k, (name, value) in enumerate(group):
            answer.add(words(f', {name}: ' if k else f'{name}: '), COPY).found(value)
        answer.add([EOS], COPY)
        if len(group) == 1:
            question = f'What is the special magic number for {group[0][0]} mentioned in the provided text?'
        else:
            asked = ', '.join(name for name, _ in group[:-1]) + f', and {group[-1][0]}'
            question = f'What are all the special magic numbers for {asked} mentioned in the provided text?'
        queries.append((words(question), answer))
    return records, queries


def register_lines(words, rng, count):
    """LongEval's lines."""
    pairs = set()
    while len(pairs) < count:
        pairs.add((rng.choice(words.adjectives), rng.choice(words.nouns)))
    records, queries = [], []
    for adjective, noun in sorted(pairs, key=lambda _: rng.random()):
        name = f'line {adjective}-{noun}'
        value = words(str(rng.randint(1, 50000)))
        records.append(Pieces().add(words(f'\n{name}: REGISTER_CONTENT is <'), FORM)
                       .add(value, NONE).add(words('>'), FORM))
        answer = Pieces().add(words(f'{name}: <'), COPY).found(value).add(words('>'), ANSWER).add([EOS], COPY)
        question = f'Tell me what is the <REGISTER_CONTENT> in {name}? I need the number.'
        queries.append((words(question), answer))
    return records, queries


TASKS = {'passkey': (pass_keys, 9), 'alias': (aliases, 9), 'magic': (magic_numbers, 21), 'lines': (register_lines, 21)}
# What may stand before the text, as in `loza eval`.
REMEMBER = 'Pass keys are hidden in the following text. I will ask you about them afterwards.\n'
INTROS = {
    'passkey': REMEMBER,
    'alias': REMEMBER,
    'magic': 'Some special magic numbers are hidden within the following text. Make sure to memorize it. '
             'I will quiz you about the numbers afterwards.\n',
    'lines': 'Below is a record of lines I want you to remember. For each line, memorize its '
             '<REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the <REGISTER_CONTENT> of a certain line.\n',
}
MIX = [('passkey', 0.37), ('alias', 0.33), ('magic', 0.14), ('lines', 0.16)]


# (records, tokens of one with its answer, index in MIX) of a drill.
DRILLS = {'keys': (pass_keys, 20, 0), 'links': (links, 7, len(MIX)), 'aliases': (aliases, 12, 1)}


def drill(words, rng, length, kinds):
    """
    Records and then their answers, about 9 tokens each: four times as many look-ups as with questions.
    `kinds` are the weights of DRILLS. (Pieces, task)
    """
    make, size, task = DRILLS[rng.choices(list(kinds), list(kinds.values()))[0]]
    records, queries = make(words, rng, length // size)
    out = Pieces().add([BOS], NONE)
    rng.shuffle(records)
    rng.shuffle(queries)
    for record in records:
        out.join(record)
    for _, answer in queries:
        out.add(words(' ['), NONE)
        start = len(out)
        out.join(answer)
        # Nobody knows who is asked for next.
        asked = next(i for i, kind in enumerate(answer.classes) if kind in (FIRST, TWICE))
        out.classes[start:start + asked] = [NONE] * asked
    return out.fit(length), task


class Texts:
    """Runs of whole sentences from a stream of documents, each document after a BOS."""

    def __init__(self, ids, tokenizer):
        self.ids = ids
        tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
        stops = np.array([t[-1:] in '.?!' and t != '' for t in tokens])
        starts = np.array([t[:1] in ('Ġ', 'Ċ') for t in tokens])
        # A sentence begins after its stop, at a token with a space or line before it.
        begins = stops[ids[:-1]] & starts[ids[1:]]
        self.begins = np.flatnonzero(begins) + 1
        self.documents = np.flatnonzero(ids == BOS)

    def passage(self, rng, length):
        """(ids of `length` tokens, places in them where sentences begin); crosses no document."""
        while True:
            start = int(self.begins[rng.randrange(len(self.begins))])
            d = int(np.searchsorted(self.documents, start, 'right'))
            end = int(self.documents[d]) if d < len(self.documents) else len(self.ids)
            if end - start >= min(length, 400):
                break
        end = min(end, start + length)
        a, b = np.searchsorted(self.begins, [start, end])
        return self.ids[start:end], self.begins[a:b] - start

    def plain(self, rng, length):
        """BOS and `length` tokens from the beginning of a document or from within one."""
        if rng.random() < 0.3:
            start = int(self.documents[rng.randrange(len(self.documents))]) + 1
        else:
            start = int(self.begins[rng.randrange(len(self.begins))])
        return self.ids[start:start + length]

    def haystack(self, rng, length):
        """Passages until `length` tokens are full: (ids, places where something may be put)."""
        ids, places, done = [], [], 0
        while done < length:
            part, begins = self.passage(rng, min(length - done, rng.randint(300, 3000)))
            ids.append(part)
            places.extend((begins + done).tolist())
            done += len(part)
        return np.concatenate(ids).tolist() if ids else [], places + [done]


def hide(hay, places, records, chosen):
    """Pieces of a haystack with records at the chosen places, given in ascending order."""
    out, at = Pieces(), 0
    for place, record in zip(chosen, records):
        out.add(hay[at:place], TEXT).join(record)
        at = place
    return out.add(hay[at:], TEXT)


def sample(rng, texts, words, length, dense=False, drills=0.0, kinds=None, twice=True):
    """
    (Pieces, task) of one training sequence of `length` tokens; the task is an index of MIX. `drills` is the
    share of drills and `kinds` which ones; without `twice` few questions ask for two look-ups.
    """
    if rng.random() < drills:
        return drill(words, rng, length, kinds)
    if not dense and rng.random() < 0.15:
        ids = texts.plain(rng, length - 1).tolist()
        return Pieces().add([BOS], NONE).add(ids, TEXT).fit(length), len(MIX)
    kind = rng.choices(range(len(MIX)), [weight if twice or name != 'alias' else 0.03 for name, weight in MIX])[0]
    task, size = TASKS[MIX[kind][0]]
    # LongEval's prompts are lines and nothing else.
    crowded = MIX[kind][0] == 'lines' and length >= 1024 and rng.random() < 0.5
    most = max(3, int(length * 0.85 / size) if crowded else min(int(length * 0.4 / size), 160))
    count = most if dense or crowded else max(2, min(most, round(math.exp(rng.uniform(math.log(2), math.log(most + 1))))))
    records, queries = task(words, rng, count)
    asked = rng.sample(queries, min(max(1, round(len(queries) * 0.6)), 60))
    room = max(length - 3 - sum(map(len, records)), 60)
    share = 0.75 if length <= 512 else 0.25
    turns = Pieces()
    for i, (question, answer) in enumerate(asked):
        separator = [USER] if i > 0 or rng.random() < 0.5 else words('\n')
        turn = separator + question + [ASSISTANT]
        if i > 0 and len(turns) + len(turn) + len(answer) > room * share:
            break
        turns.add(turn, FORM if i == 0 else TEXT).join(answer)
    intro = words(INTROS[MIX[kind][0]]) if length >= 512 and rng.random() < 0.4 else []
    text = max(length - 2 - len(intro) - len(turns) - sum(map(len, records)), 0)
    hay, places = texts.haystack(rng, text) if text > 0 else ([], [0])
    rng.shuffle(records)
    chosen = sorted(places[rng.randrange(len(places))] for _ in records)
    out = Pieces().add([BOS, USER], NONE).add(intro, FORM)
    return out.join(hide(hay, places, records, chosen)).join(turns).fit(length), kind


def batch(rng, texts, words, length, count, **kind):
    """int64 [count, length + 1], uint8 classes and int64 stops of the same shape, and the task of each row."""
    rows, kinds = zip(*(sample(rng, texts, words, length + 1, **kind) for _ in range(count)))
    column = lambda name, dtype: np.array([getattr(row, name) for row in rows], dtype)
    return column('ids', np.int64), column('classes', np.uint8), column('stops', np.int64), np.array(kinds, np.uint8)


def exam(seed, texts, words, task, length, count, asked=4, records=4):
    """
    `count` sequences with `asked` questions each at their end, records spread over the whole text:
    ids [count, length + 1], and for each question (row, first, end): the places of its answer.
    """
    rng = random.Random(seed)
    make, _ = TASKS[task]
    rows, spans = [], []
    for row in range(count):
        hidden, queries = make(words, rng, records)
        queries = rng.sample(queries, min(asked, len(queries)))
        turns = []
        for question, answer in queries:
            turns += [USER] + question + [ASSISTANT]
            spans.append([row, len(turns), len(turns) + len(answer)])
            turns += answer.ids
        text = length + 1 - 2 - len(turns) - sum(map(len, hidden))
        hay, places = texts.haystack(rng, text)
        rng.shuffle(hidden)
        chosen = sorted(places[rng.randrange(len(places))] for _ in hidden)
        ids = [BOS, USER] + hide(hay, places, hidden, chosen).ids
        for span in spans:
            if span[0] == row:
                span[1] += len(ids)
                span[2] += len(ids)
        rows.append(ids + turns)
    return np.array(rows, np.int64), spans
