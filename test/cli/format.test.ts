import {
  formatBytes,
  formatCount,
  formatDuration,
  formatFields,
  formatLength,
  formatPercent,
  formatRate,
  formatTable,
  formatTiny,
  oneLine,
  plural,
} from '../../lib/cli/format';

test.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [1024, '1.00 KiB'],
  [87293952, '83.3 MiB'],
  [2 ** 30 - 1, '1.00 GiB'],
  [1023.9 * 1024, '1.00 MiB'],
  [999 * 1024, '999 KiB'],
  [9.996 * 2 ** 40, '10.0 TiB'],
  [5000 * 2 ** 50, '5000 PiB'],
])('%d bytes are %s', (bytes, text) => expect(formatBytes(bytes)).toBe(text));

test.each([
  [0, '0 ms'],
  [999.4, '999 ms'],
  [999.6, '1.0 s'],
  [59_940, '59.9 s'],
  [59_960, '1 min 0 s'],
  [125_000, '2 min 5 s'],
])('%d ms are %s', (ms, text) => expect(formatDuration(ms)).toBe(text));

test('numbers', () => {
  expect(formatCount(4715)).toBe('4,715');
  expect([99.94, 99.96, 1091.8].map(formatRate)).toEqual(['99.9', '100', '1,092']);
  expect([0, 0.0123, 0.0996, 0.608, 1].map(formatPercent)).toEqual([
    '0%',
    '1.2%',
    '10%',
    '61%',
    '100%',
  ]);
  expect([1024, 8192, 5000, 2 ** 20, 1.5 * 2 ** 20].map(formatLength)).toEqual([
    '1K',
    '8K',
    '5,000',
    '1M',
    '1536K',
  ]);
  expect([0, 1.23e-6, NaN, Infinity].map(formatTiny)).toEqual(['0', '1.2e-6', 'NaN', 'Infinity']);
  expect([plural(1, 'file'), plural(2000, 'file')]).toEqual(['1 file', '2,000 files']);
});

test('one line, without control characters', () => {
  expect(oneLine(' a\n  b\r\n\u001b[31mc\t')).toBe('a   b [31mc');
});

test('a table has a line below its titles and nothing behind its lines', () => {
  const columns = [{ title: 'name' }, { title: 'bytes', align: 'right' as const }, { title: '' }];
  const rows = [
    ['a', '1', ''],
    ['long name', '1,000', 'x'],
  ];
  expect(formatTable(columns, rows)).toBe(
    ['name       bytes', '───────────────────', 'a              1', 'long name  1,000  x'].join(
      '\n',
    ),
  );
});

test('fields are aligned, later lines of a value too', () => {
  const fields = [
    ['a', 'one\ntwo'],
    ['long', ''],
  ] as const;
  expect(formatFields(fields)).toBe('a     one\n      two\nlong');
});
