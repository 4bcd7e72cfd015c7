import { LozaError, throwIfAborted } from '../../errors';
import type { ChatMessage, ChatTemplate } from '../../tokenizer/chat-template';
import type { Tokenizer } from '../../tokenizer/tokenizer';
import type { TrainingDocument } from './documents';

/** Which tokens are learned: all that something comes before, or those of the assistant. */
export type LossOn = 'all' | 'answers';

/** A document as tokens. */
export interface Example {
  tokens: Int32Array;
  /** 1 where a token is to be predicted from those before it. */
  targets: Uint8Array;
  /** Whether it may go on in the next sequence: a text does, a chat is never cut. */
  divisible: boolean;
}

/** Turns documents into tokens, in the way in which the model meets them when it is used. */
export class ExampleEncoder {
  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly template: ChatTemplate,
    private readonly lossOn: LossOn,
    private readonly signal?: AbortSignal,
  ) {}

  /** Undefined for a document without anything to learn. */
  async encode(document: TrainingDocument): Promise<Example | undefined> {
    throwIfAborted(this.signal);
    if (document.messages !== undefined) return this.chat(document.messages);
    return this.lossOn === 'all' ? this.text(document.text) : undefined;
  }

  /** The text between the tokens that begin and end one, where the checkpoint has such. */
  private async text(text: string): Promise<Example> {
    const { bosId, eosIds } = this.tokenizer;
    const inner = await this.tokenizer.encode(text, { signal: this.signal });
    const begin = bosId === undefined || inner[0] === bosId ? [] : [bosId];
    const end = inner.at(-1) === eosIds[0] ? [] : eosIds.slice(0, 1);
    const tokens = Int32Array.from([...begin, ...inner, ...end]);
    return { tokens, targets: new Uint8Array(tokens.length).fill(1), divisible: true };
  }

  /** Each turn is encoded for itself: so the model reads a prompt and writes an answer. */
  private async chat(messages: readonly ChatMessage[]): Promise<Example | undefined> {
    const tokens: number[] = [];
    const targets: number[] = [];
    for (const { text, isAnswer } of splitTurns(messages, this.template)) {
      const { signal } = this;
      const ids = await this.tokenizer.encode(text, { addSpecialTokens: false, signal });
      const target = isAnswer || this.lossOn === 'all' ? 1 : 0;
      for (const id of ids) {
        tokens.push(id);
        targets.push(target);
      }
    }
    if (!targets.includes(1)) return undefined;
    const example = { tokens: Int32Array.from(tokens), targets: Uint8Array.from(targets) };
    return { ...example, divisible: false };
  }
}

interface Turn {
  text: string;
  isAnswer: boolean;
}

/** The rendered chat, cut where answers of the assistant begin and end. */
export function splitTurns(messages: readonly ChatMessage[], template: ChatTemplate): Turn[] {
  const turns: Turn[] = [];
  let done = '';
  const cutTo = (whole: string, isAnswer: boolean) => {
    if (!whole.startsWith(done)) throw notAdditive();
    if (whole.length > done.length) turns.push({ text: whole.slice(done.length), isAnswer });
    done = whole;
  };
  messages.forEach(({ role }, i) => {
    if (role !== 'assistant') return;
    cutTo(template.render(messages.slice(0, i), { addGenerationPrompt: true }), false);
    cutTo(template.render(messages.slice(0, i + 1), { addGenerationPrompt: false }), true);
  });
  cutTo(template.render(messages, { addGenerationPrompt: false }), false);
  return turns;
}

function notAdditive(): LozaError {
  const problem = 'The chat template changes earlier turns of a chat when later ones are added';
  return new LozaError('ERR_LOZA_CHAT_TEMPLATE', problem, {
    hint: 'Write each answer as a chat of its own, or the whole chats as "text"',
  });
}
