import fc from 'fast-check';
import { StopStrings } from '../../lib/runner/stop-strings';

interface Streamed {
  pieces: string[];
  stopped: boolean;
}

function stream(stops: readonly string[], texts: readonly string[]): Streamed {
  const matcher = new StopStrings(stops);
  const results = texts.map((text) => matcher.push(text));
  const stopped = results.at(-1)?.stopped ?? false;
  return { pieces: [...results.map((result) => result.text), matcher.flush()], stopped };
}

/** The same by looking at every end of the whole text. */
function naive(stops: readonly string[], text: string): { text: string; stopped: boolean } {
  for (let end = 1; end <= text.length; end++) {
    const found = stops.filter((stop) => text.slice(0, end).endsWith(stop));
    const longest = Math.max(0, ...found.map((stop) => stop.length));
    if (longest > 0) return { text: text.slice(0, end - longest), stopped: true };
  }
  return { text, stopped: false };
}

it.each<[string, string[], string[], string[], boolean]>([
  ['nothing to find', [], ['ab', 'c'], ['ab', 'c', ''], false],
  ['within a piece', ['b'], ['abc'], ['a', ''], true],
  ['across pieces', ['END'], ['a E', 'N', 'D b'], ['a ', '', '', ''], true],
  ['only a beginning', ['END'], ['a E', 'NX'], ['a ', 'ENX', ''], false],
  ['a beginning at the end', ['END'], ['a EN'], ['a ', 'EN'], false],
  ['a beginning within a beginning', ['aab'], ['aa', 'a', 'b'], ['', 'a', '', ''], true],
  ['the first that is complete', ['abcd', 'bc'], ['abcd'], ['a', ''], true],
  ['the longest of two', ['c', 'abc'], ['xabc'], ['x', ''], true],
  ['at the very beginning', ['a'], ['a'], ['', ''], true],
  ['nothing after the end', ['a'], ['xa', 'y', 'z'], ['x', '', '', ''], true],
  ['empty pieces', ['ab'], ['a', '', 'b'], ['', '', '', ''], true],
  ['characters outside the basic plane', ['😀!'], ['a😀', '?😀!'], ['a', '😀?', ''], true],
])('finds %s', (_, stops, texts, pieces, stopped) => {
  expect(stream(stops, texts)).toEqual({ pieces, stopped });
});

it('can be used again after a flush', () => {
  const matcher = new StopStrings(['ab']);
  expect(matcher.push('ab').stopped).toBe(true);
  matcher.flush();
  expect(matcher.push('a')).toEqual({ text: '', stopped: false });
  expect(matcher.flush()).toBe('a');
  expect(matcher.push('b')).toEqual({ text: 'b', stopped: false });
});

const word = (minLength: number, maxLength: number) =>
  fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength, maxLength });
const anyStops = fc.array(word(1, 5), { minLength: 1, maxLength: 4 });

it('agrees with a naive search, however the text is cut', () => {
  fc.assert(
    fc.property(anyStops, fc.array(word(0, 6), { maxLength: 12 }), (stops, texts) => {
      const { pieces, stopped } = stream(stops, texts);
      expect({ text: pieces.join(''), stopped }).toEqual(naive(stops, texts.join('')));
    }),
    { numRuns: 5000 },
  );
});

it('holds back no more than the beginning of a stop string', () => {
  fc.assert(
    fc.property(anyStops, fc.array(word(1, 4), { minLength: 1, maxLength: 8 }), (stops, texts) => {
      const { pieces, stopped } = stream(stops, texts);
      fc.pre(!stopped);
      const text = texts.join('');
      const lengths = Array.from({ length: text.length + 1 }, (_, length) => length);
      const held = lengths.filter((length) => {
        const tail = text.slice(text.length - length);
        return stops.some((stop) => stop.startsWith(tail));
      });
      expect(pieces.at(-1)).toHaveLength(Math.max(...held));
    }),
    { numRuns: 2000 },
  );
});
