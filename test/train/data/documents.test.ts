import path from 'node:path';
import { readDocuments } from '../../../lib/train/data/documents';
import { expectLozaError } from '../../support/errors';
import { tempFolder } from '../../support/temp-folder';

const chat = [
  { role: 'user', content: 'What?' },
  { role: 'assistant', content: 'That.' },
];

describe('readDocuments', () => {
  test('reads texts and chats in their order, and skips empty lines', async () => {
    const lines = [{ text: 'one' }, { messages: chat }].map((one) => JSON.stringify(one));
    const dir = tempFolder({ 'a.jsonl': `${lines.join('\n\n')}\r\n`, 'b.txt': 'x\ny\n\0\n z\0\n' });
    const files = ['a.jsonl', 'b.txt'].map((name) => path.join(dir, name));
    expect(await readDocuments(files)).toEqual([
      { text: 'one' },
      { messages: chat },
      { text: 'x\ny' },
      { text: ' z' },
    ]);
  });

  test.each([
    ['no JSON', '{"text": "a"}\nhello', /line 2: bad JSON/],
    ['neither text nor messages', '{"content": "a"}', /line 1: expected an object with "text"/],
    ['both', '{"text": "a", "messages": []}', /expected an object with "text" or with "messages"/],
    ['an empty text', '{"text": ""}', /not empty/],
    ['no messages', '{"messages": []}', /array of \{"role", "content"\}/],
    ['a message without a role', '{"messages": [{"content": "a"}]}', /array of \{"role"/],
    ['nothing', '\n', /there is no document/],
  ])('refuses %s', async (_, content, message) => {
    const dir = tempFolder({ 'a.jsonl': content });
    await expectLozaError(
      () => readDocuments([path.join(dir, 'a.jsonl')]),
      'ERR_LOZA_DATA',
      message,
    );
  });

  test('refuses other files, missing ones and none', async () => {
    await expectLozaError(() => readDocuments(['a.csv']), 'ERR_LOZA_INVALID_ARG', '.jsonl or .txt');
    await expectLozaError(() => readDocuments(['/no/a.txt']), 'ERR_LOZA_NOT_FOUND', '/no/a.txt');
    await expectLozaError(() => readDocuments([]), 'ERR_LOZA_INVALID_ARG', 'no data files');
  });
});
