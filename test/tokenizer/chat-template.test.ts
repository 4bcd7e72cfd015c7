import { ChatTemplate, type ChatMessage } from '../../lib/tokenizer/chat-template';
import { errorOf, makeDir, type Json } from './fixture';

const user: ChatMessage = { role: 'user', content: 'hi' };

function load(chat_template: unknown, more: Json = {}, files: Json = {}): Promise<ChatTemplate> {
  const config = { bos_token: { content: '<s>' }, eos_token: '</s>', ...more };
  return ChatTemplate.load(
    makeDir({ 'tokenizer_config.json': { ...config, chat_template }, ...files }),
  );
}

const turns =
  "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";

describe('rendering', () => {
  it.each<[string, unknown, readonly ChatMessage[], Json, string]>([
    ['a prompt', turns, [user], {}, '<s>[user]hi[assistant]'],
    ['no generation prompt', turns, [user], { addGenerationPrompt: false }, '<s>[user]hi'],
    [
      'a conversation',
      turns,
      [{ role: 'system', content: 'S' }, user, { role: 'assistant', content: 'yo' }, user],
      {},
      '<s>[system]S[user]hi[assistant]yo</s>[user]hi[assistant]',
    ],
    ['thinking on', '{{ enable_thinking }}', [user], { enableThinking: true }, 'true'],
    ['thinking left to the template', '{{ enable_thinking is defined }}', [user], {}, 'false'],
    ['another variable', '{{ keep }}', [user], { keep: 5 }, '5'],
    ['another key of a message', '{{ messages[0].name }}', [{ ...user, name: 'N' }], {}, 'N'],
    ['undefined as nothing', 'a{{ nothing }}b', [user], {}, 'ab'],
    ['a token that the checkpoint lacks', '{{ pad_token is defined }}', [user], {}, 'false'],
    ['tools as none', '{{ tools is none }}', [user], {}, 'true'],
    ['tools', '{{ tools[0] | tojson }}', [user], { tools: [{ a: 1 }] }, '{"a": 1}'],
    [
      'text that looks like a template',
      '{{ messages[0].content }}',
      [{ ...user, content: '{{ 1 }}' }],
      {},
      '{{ 1 }}',
    ],
    [
      'the default of a list',
      [
        { name: 'default', template: 'd' },
        { name: 'tool_use', template: 't' },
      ],
      [user],
      {},
      'd',
    ],
    [
      'tool_use of a list',
      [
        { name: 'default', template: 'd' },
        { name: 'tool_use', template: 't' },
      ],
      [user],
      { tools: [] },
      't',
    ],
    ['the default for tools', [{ name: 'default', template: 'd' }], [user], { tools: [] }, 'd'],
  ])('%s', async (_, template, messages, options, text) => {
    expect((await load(template)).render(messages, options)).toBe(text);
  });

  it('lets chat_template.jinja win', async () => {
    const template = await load('config', {}, { 'chat_template.jinja': 'file {{ bos_token }}' });
    expect(template.render([user])).toBe('file <s>');
  });
});

describe('a refused conversation', () => {
  it.each<[string, unknown, unknown]>([
    ['no array', 'hi', {}],
    ['an empty list', [], {}],
    ['null as a message', [null], {}],
    ['an unknown role', [{ role: 'robot', content: 'x' }], {}],
    ['a missing role', [{ content: 'x' }], {}],
    ['missing content', [{ role: 'user' }], {}],
    ['content in parts', [{ role: 'user', content: [{ type: 'text', text: 'x' }] }], {}],
    ['an unpaired surrogate', [{ role: 'user', content: 'a\ud800' }], {}],
    ['a function', [{ ...user, call: () => 1 }], {}],
    [
      'a cycle',
      [
        Object.assign(
          { ...user },
          {
            get self(): unknown {
              return [this];
            },
          },
        ),
      ],
      {},
    ],
    ['a bigint', [{ ...user, count: 1n }], {}],
    ['null as options', [user], null],
    ['a flag as text', [user], { addGenerationPrompt: 'yes' }],
    ['thinking as text', [user], { enableThinking: 'no' }],
    ['tools that are no list', [user], { tools: {} }],
    ['tools of text', [user], { tools: ['x'] }],
    ['the name of the template for an option', [user], { enable_thinking: true }],
    ['messages twice', [user], { messages: [user] }],
    ['the name of a built-in', [user], { range: 5 }],
  ])('%s', async (_, messages, options) => {
    const template = await load(turns);
    const error = await errorOf(() =>
      template.render(messages as ChatMessage[], options as Record<string, unknown>),
    );
    expect(error.code).toBe('ERR_LOZA_CHAT_TEMPLATE');
  });
});

describe('a template that fails', () => {
  it.each([
    ['raises', "{{ raise_exception('roles must alternate') }}", /roles must alternate/],
    ['raises without a reason', '{{ raise_exception() }}', /failed/],
    ['is not closed', '{% if x %}', /cannot be parsed/],
    ['has an unknown tag', '{% import x %}', /cannot be parsed/],
    ['has an unknown filter', '{{ 1 | shell }}', /shell/],
    ['reaches into undefined', '{{ nothing.a.b() }}', /failed/],
    ['recurses', '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', /failed/],
    ['emits half a character', '{{ half }}', /surrogate/],
  ])('%s', async (_, source, message) => {
    const template = await load(source);
    const error = await errorOf(() => template.render([user], { half: '\ud800' }));
    expect(error.code).toBe('ERR_LOZA_CHAT_TEMPLATE');
    expect(error.message).toMatch(message);
  });

  it('gives more than 4 MB', async () => {
    const template = await load('{{ messages[0].content }}');
    const content = 'x'.repeat(4 * 2 ** 20);
    expect(template.render([{ ...user, content }])).toBe(content);
    const error = await errorOf(() => template.render([{ ...user, content: `${content}x` }]));
    expect(error).toMatchObject({ code: 'ERR_LOZA_CHAT_TEMPLATE', value: content.length + 1 });
  });

  it('is stopped after two seconds', async () => {
    const loop = '{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}';
    const template = await load(loop);
    const started = Date.now();
    expect((await errorOf(() => template.render([user]))).code).toBe('ERR_LOZA_CHAT_TEMPLATE');
    expect(Date.now() - started).toBeLessThan(20_000);
  });

  it('reaches no prototype', async () => {
    const template = await load('[{{ messages.constructor }}{{ messages[0].__proto__ }}]');
    expect(template.render([user])).toBe('[]');
  });
});

describe('a checkpoint', () => {
  it.each<[string, Json]>([
    ['a number', { 'tokenizer_config.json': { chat_template: 5 } }],
    ['a list of text', { 'tokenizer_config.json': { chat_template: ['x'] } }],
    [
      'a name twice',
      {
        'tokenizer_config.json': {
          chat_template: [
            { name: 'a', template: '' },
            { name: 'a', template: '' },
          ],
        },
      },
    ],
    ['too long a text', { 'tokenizer_config.json': { chat_template: 'x'.repeat(256 * 1024 + 1) } }],
    ['too long a file', { 'chat_template.jinja': 'x'.repeat(256 * 1024 + 1) }],
    ['a file that is not UTF-8', { 'chat_template.jinja': Buffer.from([0xff]) }],
    ['a malformed configuration', { 'tokenizer_config.json': '{' }],
  ])('with %s as template is refused', async (_, files) => {
    const error = await errorOf(() => ChatTemplate.load(makeDir(files)));
    expect(error.code).toBe('ERR_LOZA_CHAT_TEMPLATE');
  });

  it.each<[string, Json]>([
    ['no files', {}],
    ['no template', { 'tokenizer_config.json': { chat_template: null } }],
    [
      'no default template',
      { 'tokenizer_config.json': { chat_template: [{ name: 'rag', template: '' }] } },
    ],
  ])('with %s says to pass text', async (_, files) => {
    const template = await ChatTemplate.load(makeDir(files));
    const error = await errorOf(() => template.render([user]));
    expect(error.code).toBe('ERR_LOZA_CHAT_TEMPLATE');
    expect(error.message).toMatch(/Pass the whole prompt as text/);
  });

  it('says whether it has a template', async () => {
    expect((await load('x')).available).toBe(true);
    expect((await ChatTemplate.load(makeDir({}))).available).toBe(false);
  });
});
