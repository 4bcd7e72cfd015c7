import { hintAtNames } from '../lib/nearest-name';

const known = ['maxTokens', 'maxSequences', 'kvDtype', 'dtype'];

test.each([
  ['maxTokes', 'maxTokens'],
  ['max_tokens', 'maxTokens'],
  ['MAXSEQUENCE', 'maxSequences'],
  ['kv-dtype', 'kvDtype'],
  ['type', 'dtype'],
])('%s is most like %s', (key, expected) => {
  expect(hintAtNames(key, known)).toBe(`Did you mean ${expected}?`);
});

test.each(['', 'x', 'colour', 'x'.repeat(1e6)])('like none of them: all are named', (key) => {
  expect(hintAtNames(key, known)).toBe(`There is ${known.join(', ')}`);
});

test('of no names there is none', () => {
  expect(hintAtNames('a', [])).toBe('There is none');
});
