import path from 'node:path';
import vm from 'node:vm';
import { Template } from '@huggingface/jinja';
import { LozaError, show } from '../errors';
import {
  decodeUtf8,
  isPlainObject,
  loneSurrogateIndex,
  namedToken,
  readOptionalFile,
  readTokenizerConfig,
  type PlainObject,
} from './files';

/** One message of a conversation. Further keys (`tool_calls`, ...) reach the template unchanged. */
export interface ChatMessage {
  readonly role: 'system' | 'user' | 'assistant' | 'tool';
  readonly content: string;
  readonly [key: string]: unknown;
}

export interface ChatTemplateOptions {
  /** End with the beginning of an assistant message, for the model to go on from (default true). */
  addGenerationPrompt?: boolean | undefined;
  /** Tool descriptions as JSON schema objects. */
  tools?: readonly object[] | undefined;
  /** For models that can think before they answer; without it the template decides. */
  enableThinking?: boolean | undefined;
  /** Any other variable of the template, under its own name; plain JSON values only. */
  readonly [variable: string]: unknown;
}

const code = 'ERR_LOZA_CHAT_TEMPLATE';
const maxTemplateBytes = 256 * 1024;
const maxOutputLength = 4 * 2 ** 20;
/** A template comes with the checkpoint and may loop: none that is honest needs this long. */
const maxRenderMs = 2_000;

const roles: readonly unknown[] = ['system', 'user', 'assistant', 'tool'];
const specialTokens = ['bos_token', 'eos_token', 'pad_token', 'unk_token'];
/** Variables with an option or an argument of their own. */
const ownVariables: Record<string, string> = {
  messages: 'the first argument',
  add_generation_prompt: 'addGenerationPrompt',
  enable_thinking: 'enableThinking',
};

/** Turns messages into the text a model was trained on, by the Jinja template of its checkpoint. */
export class ChatTemplate {
  readonly #compiled = new Map<string, Template>();

  private constructor(
    private readonly dir: string,
    private readonly templates: ReadonlyMap<string, string>,
    private readonly variables: PlainObject,
  ) {}

  /**
   * Reads chat_template.jinja (which wins) or tokenizer_config.json of a checkpoint folder. A folder
   * without either gives a ChatTemplate that is not `available`.
   * Errors: ERR_LOZA_CHAT_TEMPLATE for a malformed or too large template, ERR_LOZA_IO.
   */
  static async load(dir: string): Promise<ChatTemplate> {
    const configFile = path.join(dir, 'tokenizer_config.json');
    const config = await readTokenizerConfig(configFile, code);
    const file = path.join(dir, 'chat_template.jinja');
    const bytes = await readOptionalFile(file, maxTemplateBytes, code);
    const templates =
      bytes === undefined
        ? readTemplates(config['chat_template'] ?? undefined)
        : new Map([['default', decodeUtf8(bytes, file, code)]]);
    const tokens = specialTokens.map((name) => [name, namedToken(config, name)] as const);
    const variables = Object.fromEntries(tokens.filter(([, token]) => token !== undefined));
    return new ChatTemplate(dir, templates, variables);
  }

  /** Whether the checkpoint has a template; if not, `render` throws. */
  get available(): boolean {
    return this.templates.size > 0;
  }

  /**
   * The prompt text for `messages`, special tokens included: encode it with `addSpecialTokens: false`.
   * Errors: ERR_LOZA_CHAT_TEMPLATE.
   */
  render(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    if (!isPlainObject(options)) throw fail(`Options must be an object, found ${show(options)}`);
    const { addGenerationPrompt = true, tools, enableThinking, ...extra } = options;
    checkMessages(messages);
    checkFlag('addGenerationPrompt', addGenerationPrompt);
    checkFlag('enableThinking', enableThinking ?? false);
    checkTools(tools);
    for (const [name, instead] of Object.entries(ownVariables)) {
      if (name in extra) throw fail(`Template variable ${show(name)}: use ${instead}`, name);
    }
    const template = this.#template(tools !== undefined);
    const variables = plainCopy({
      ...this.variables,
      ...extra,
      messages,
      tools: tools ?? null,
      add_generation_prompt: addGenerationPrompt,
      enable_thinking: enableThinking,
    });
    return checkOutput(run('failed', () => template.render(variables)));
  }

  /** As in Hugging Face, `tool_use` serves calls with tools where the checkpoint has it. */
  #template(withTools: boolean): Template {
    const name = withTools && this.templates.has('tool_use') ? 'tool_use' : 'default';
    const source = this.templates.get(name);
    if (source === undefined) {
      const hint =
        'Pass the whole prompt as text instead of messages, written as the model expects';
      const named = [...this.templates.keys()].map(show).join(', ');
      const found = named === '' ? '' : ` named "default", only ${named}`;
      throw new LozaError(code, `The checkpoint ${this.dir} has no chat template${found}`, {
        hint,
      });
    }
    let template = this.#compiled.get(name);
    if (template === undefined) {
      template = run('cannot be parsed', () => new Template(source));
      this.#compiled.set(name, template);
    }
    return template;
  }
}

function fail(problem: string, value?: unknown, hint?: string): LozaError {
  return new LozaError(code, problem, hint === undefined ? { value } : { value, hint });
}

/** The templates of tokenizer_config.json by name: one text, or a list of named ones. */
function readTemplates(value: unknown): Map<string, string> {
  const list = Array.isArray(value) ? (value as unknown[]) : [{ name: 'default', template: value }];
  const templates = new Map<string, string>();
  if (value === undefined) return templates;
  for (const entry of list) {
    const { name, template } = isPlainObject(entry) ? entry : {};
    if (typeof name !== 'string' || typeof template !== 'string') {
      const expected = 'a text or a list of { name, template }';
      throw fail(`chat_template must be ${expected}, found ${show(entry)}`, entry);
    }
    const size = Buffer.byteLength(template);
    if (size > maxTemplateBytes) {
      throw fail(
        `The chat template ${show(name)} has ${size} bytes, limit ${maxTemplateBytes}`,
        size,
      );
    }
    if (templates.has(name)) throw fail(`There are two chat templates named ${show(name)}`, name);
    templates.set(name, template);
  }
  return templates;
}

function checkMessages(messages: unknown): void {
  if (!Array.isArray(messages)) throw fail(`messages must be an array, found ${show(messages)}`);
  if (messages.length === 0) throw fail('messages must not be empty', messages);
  for (const [index, message] of (messages as unknown[]).entries()) {
    const where = `messages[${index}]`;
    if (!isPlainObject(message)) {
      throw fail(`${where} must be an object, found ${show(message)}`, message);
    }
    const { role, content } = message;
    if (!roles.includes(role)) {
      throw fail(`${where}.role must be one of ${roles.join(', ')}, found ${show(role)}`, role);
    }
    if (typeof content !== 'string') {
      const hint = 'Only text can be read; write the parts of a message into one string';
      throw fail(`${where}.content must be a string, found ${show(content)}`, content, hint);
    }
    const at = loneSurrogateIndex(content);
    if (at !== -1) {
      const hint = 'Cut strings between characters, or call text.toWellFormed()';
      throw fail(`${where}.content has an unpaired surrogate at index ${at}`, content, hint);
    }
  }
}

function checkFlag(name: string, value: unknown): void {
  if (typeof value !== 'boolean') {
    throw fail(`${name} must be true or false, found ${show(value)}`, value);
  }
}

function checkTools(tools: unknown): void {
  if (tools === undefined) return;
  if (!Array.isArray(tools) || !tools.every(isPlainObject)) {
    throw fail(`tools must be an array of objects, found ${show(tools)}`, tools);
  }
}

/** A copy that holds nothing but JSON, so that a template can reach no method and no prototype. */
function plainCopy(variables: PlainObject): PlainObject {
  try {
    return JSON.parse(JSON.stringify(variables, rejectCode)) as PlainObject;
  } catch (cause) {
    throw new LozaError(code, 'Messages, tools and variables must be plain JSON values', { cause });
  }
}

function rejectCode(key: string, value: unknown): unknown {
  if (typeof value !== 'function' && typeof value !== 'symbol') return value;
  throw new TypeError(`${show(key)} is a ${typeof value}`);
}

/** Runs template code under a time limit; whatever it throws becomes a LozaError. */
function run<T>(failure: string, work: () => T): T {
  try {
    const sandbox = vm.createContext({ work });
    return vm.runInContext('work()', sandbox, { timeout: maxRenderMs }) as T;
  } catch (cause) {
    const reason = isPlainObject(cause) ? String(cause['message']) : '';
    throw new LozaError(code, `The chat template ${failure}: ${show(reason)}`, {
      value: reason,
      hint: 'Check that the model expects such messages, or pass the prompt as text',
      cause,
    });
  }
}

function checkOutput(text: string): string {
  if (text.length > maxOutputLength) {
    const problem = `The chat template gave ${text.length} characters, limit ${maxOutputLength}`;
    throw fail(problem, text.length, 'Pass such a long prompt as text');
  }
  const at = loneSurrogateIndex(text);
  if (at === -1) return text;
  throw fail(`The rendered prompt has an unpaired surrogate at index ${at}`, text.charCodeAt(at));
}
