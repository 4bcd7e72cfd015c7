/** What to try in the place of a name that is not known: the likeliest one, or else all of them. */
export function hintAtNames(key: string, known: readonly string[]): string {
  const typed = plain(key.slice(0, 64));
  const distances = known.map((name) => editDistance(typed, plain(name)));
  const least = Math.min(...distances);
  const nearest = known[distances.indexOf(least)];
  if (nearest !== undefined && least <= typed.length / 2) return `Did you mean ${nearest}?`;
  return known.length === 0 ? 'There is none' : `There is ${known.join(', ')}`;
}

/** `max_tokens` and `MaxTokens` are alike. */
const plain = (name: string): string => name.replaceAll(/[_-]/g, '').toLowerCase();

/** Levenshtein distance, one row of the table at a time. */
function editDistance(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (let i = 0; i < from.length; i++) {
    const next = [i + 1];
    for (let j = 0; j < to.length; j++) {
      const replace = (row[j] as number) + (from[i] === to[j] ? 0 : 1);
      next.push(Math.min(replace, (row[j + 1] as number) + 1, (next[j] as number) + 1));
    }
    row = next;
  }
  return row[to.length] as number;
}
