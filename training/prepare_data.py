"""Makes the data of train_loza_tiny.py: a tokenizer, the tokens of public-domain texts, word lists.

    python prepare_data.py SOTU_DIR MOBY_DICK_DIR KJV_FILE OUT_DIR

README.md says where the three texts come from. The tokenizer is a byte-level BPE of 2,048 tokens: most
of it learned from the texts; the rest merges that make each name of names.json one token, with
and without a space before it, because a name in pieces is much harder for a small model to match.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB = 2048
SPECIAL = ['<longcat_unk>', '<longcat_s>', '</longcat_s>', '<longcat_pad>',
           '<longcat_system>', '<longcat_user>', '<longcat_assistant>']
BOS = 1
TRAIN, HELD = 'train', 'held_out'
# Held out: every 20th address, every 25th chapter, and these books.
HELD_OUT_BOOKS = {'Ruth', 'Jonah', 'Jas', 'Eccl'}
# Words of the prompts of `loza eval` besides the names.
PROMPT_WORDS = ['What', 'Tell', ' key', ' VAR', ' REGISTER', 'REGISTER', 'CONTENT', ' magic',
                ' numbers', 'line', ' One', ' behind', ' mentioned', ' provided', ' text', ' keys']


def read_texts(sotu, moby, kjv):
    """[(text, part)] of whole documents: train, validation or held_out."""
    docs = []
    for i, path in enumerate(sorted(Path(sotu).glob('*.txt'))):
        docs.append((path.read_text(encoding='utf8'), {7: HELD, 17: 'validation'}.get(i % 20, TRAIN)))
    chapters = sorted(Path(moby).glob('chapter_*.txt'), key=lambda p: int(re.findall(r'\d+', p.stem)[0]))
    for i, path in enumerate(chapters):
        docs.append((path.read_text(encoding='utf8'), HELD if i % 25 == 7 else TRAIN))
    books = {}
    for line in Path(kjv).read_text(encoding='utf8').splitlines():
        book, chapter, verse = re.match(r'(\w+?)(\d+):\d+ +(.*)', line).groups()
        books.setdefault(book, {}).setdefault(chapter, []).append(verse)
    for book, text in books.items():
        docs.append(('\n\n'.join(' '.join(verses) for verses in text.values()), HELD if book in HELD_OUT_BOOKS else TRAIN))
    clean = [(re.sub(r'[ \t]+', ' ', text.replace('\r', '')).strip(), part) for text, part in docs]
    return [(text, part) for text, part in clean if len(text) > 500]


def learn_tokenizer(texts, names):
    """BPE of the texts with appended merges for the names and the prompts' words."""
    def new():
        tok = Tokenizer(models.BPE())
        tok.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
        tok.decoder = decoders.ByteLevel()
        return tok

    whole = [' ' + word for word in names['adjectives']]
    whole += [space + word for word in names['nouns'] for space in ('', ' ')] + PROMPT_WORDS
    tok = new()
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    full = json.loads(tok.to_str())
    alphabet = VOCAB - len(full['model']['merges'])
    for base in range(len(full['model']['merges']), 0, -1):
        spec = with_merges(full, alphabet, base)
        needed = appended_merges(Tokenizer.from_str(json.dumps(spec)), whole)
        if alphabet + base + len(needed) <= VOCAB:
            break
    # What is left over goes to texts again.
    model = spec['model']
    for left, right in needed:
        model['merges'].append([left, right])
        model['vocab'].setdefault(left + right, len(model['vocab']))
    tok = Tokenizer.from_str(json.dumps(spec))
    pieces = {word: len(tok.encode(word).ids) for word in whole}
    print('base merges', base, 'for words', len(needed), 'in pieces', [w for w in pieces if pieces[w] > 1])
    print('vocabulary', len(model['vocab']))
    return tok


def with_merges(full, alphabet, count):
    spec = json.loads(json.dumps(full))
    model = spec['model']
    model['merges'] = model['merges'][:count]
    model['vocab'] = {k: v for k, v in model['vocab'].items() if v < alphabet + count}
    return spec


def appended_merges(tok, words):
    """Merges of lowest priority that join the pieces of each word from the left."""
    merges, known = [], set()
    for word in words:
        pieces = tok.encode(word).tokens
        # Those appended before apply here too, in their order.
        for left, right in merges:
            i = 0
            while i < len(pieces) - 1:
                if pieces[i] == left and pieces[i + 1] == right:
                    pieces[i:i + 2] = [left + right]
                i += 1
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            pieces[0:2] = [pair[0] + pair[1]]
            if pair not in known:
                known.add(pair)
                merges.append(pair)
    return merges


def common_words(texts, names, count=1500):
    """Frequent words of the texts: more names, most of them in pieces."""
    taken = set(names['nouns'] + names['adjectives'])
    counts = Counter(word for text in texts for word in re.findall(r'\b[a-z]{4,9}\b', text))
    return [word for word, _ in counts.most_common(count + 300) if word not in taken][:count]


def main(sotu, moby, kjv, out):
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    names = json.loads((Path(__file__).parent / 'names.json').read_text())
    docs = read_texts(sotu, moby, kjv)
    train = [text for text, part in docs if part == TRAIN]
    tok = learn_tokenizer(train, names)
    tok.save(str(out / 'tokenizer.json'))
    arrays = {}
    for name in (TRAIN, 'validation', HELD):
        texts = [text for text, part in docs if part == name]
        arrays[name] = np.concatenate([np.array([BOS] + tok.encode(text).ids, np.uint16) for text in texts])
        print(name, len(texts), 'documents', len(arrays[name]), 'tokens', sum(map(len, texts)), 'characters')
    np.savez(out / 'data.npz', **arrays)
    names['others'] = common_words(train, names)
    (out / 'words.json').write_text(json.dumps(names))


main(*sys.argv[1:])
