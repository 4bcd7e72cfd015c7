/** The known key that takes the fewest letters to change; `max_tokens` and `MaxTokens` are alike. */
export function nearestName(key: string, known: readonly string[]): string {
  const plain = (name: string) => name.replaceAll(/[_-]/g, '').toLowerCase();
  const distances = known.map((name) => editDistance(plain(key.slice(0, 64)), plain(name)));
  return known[distances.indexOf(Math.min(...distances))] ?? '';
}

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
