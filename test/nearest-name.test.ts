import { nearestName } from '../lib/nearest-name';

const known = ['maxTokens', 'maxSequences', 'kvDtype', 'dtype'];

test.each([
  ['maxTokes', 'maxTokens'],
  ['max_tokens', 'maxTokens'],
  ['MAXSEQUENCE', 'maxSequences'],
  ['kv-dtype', 'kvDtype'],
  ['d', 'dtype'],
])('%s is most like %s', (key, expected) => {
  expect(nearestName(key, known)).toBe(expected);
});

test('a long key takes no time', () => {
  expect(nearestName(`kvDtype${'x'.repeat(1e6)}`, known)).not.toBe('');
});

test('of no names there is none', () => {
  expect(nearestName('a', [])).toBe('');
});
