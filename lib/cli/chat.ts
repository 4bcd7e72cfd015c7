import { createInterface } from 'node:readline';
import type { Command } from 'commander';

import { LozaError } from '../errors';
import type { LanguageModel } from '../language-model';
import type { GenerateOptions } from '../runner/sampling';
import type { Session } from '../session';
import type { Context } from './context';
import { oneLine } from './format';
import { describeRun, resultObject, streamText } from './generate';
import { withModel } from './open-model';
import {
  addLoadFlags,
  addSamplingFlags,
  readGenerateOptions,
  readLoadOptions,
  type LoadFlags,
  type SamplingFlags,
} from './options';

interface ChatFlags extends LoadFlags, SamplingFlags {
  system?: string;
}

const usage = '/reset forgets the conversation, /exit ends, Ctrl-C stops an answer';
const examples = `
${usage}.
A turn reads only what is new: the keys and values of the turns before are kept.
Without a terminal each line of standard input is a turn; with --json each answer is an object.

Examples:
  loza chat models/loza-tiny
  loza chat DIR --system "Answer in one sentence." -t 0.7
  printf 'Hello\\nAnd again?\\n' | loza chat DIR --json`;

export function registerChat(program: Command, context: Context): void {
  const command = program
    .command('chat')
    .description('Talks with a model, by its chat template.')
    .argument('<dir>', 'checkpoint folder')
    .option('--system <text>', 'instructions before the conversation');
  addSamplingFlags(command);
  addLoadFlags(command)
    .addHelpText('after', examples)
    .action((dir: string, flags: ChatFlags) => chat(dir, flags, context));
}

async function chat(dir: string, flags: ChatFlags, context: Context): Promise<void> {
  await withModel(dir, await readLoadOptions(dir, flags), context, async (model) => {
    const options = readGenerateOptions(flags);
    await talk(new Conversation(model, options, flags.system, context), context);
  });
}

/** One turn a line, from a terminal (with a prompt and line editing) or from a pipe. */
async function talk(conversation: Conversation, context: Context): Promise<void> {
  const interactive = process.stdin.isTTY && !context.json;
  const lines = createInterface({
    input: process.stdin,
    ...(interactive ? { output: process.stderr } : {}),
    terminal: interactive,
    prompt: '> ',
    signal: context.signal,
  });
  // On a terminal Ctrl-C comes here: it stops the answer, or ends the chat between answers.
  lines.on('SIGINT', () => {
    if (!conversation.stop()) lines.close();
  });
  context.note(`${usage}.`);
  if (interactive) lines.prompt();
  for await (const line of lines) {
    const text = line.trim();
    if (text === '/exit') break;
    if (text === '/reset') conversation.reset();
    else if (text !== '') await takeTurn(conversation, line, interactive);
    if (interactive) lines.prompt();
  }
  lines.close();
  if (context.signal.aborted) throw new LozaError('ERR_LOZA_ABORTED', 'The chat was interrupted');
}

/** At a terminal an error ends the turn and not the chat. */
async function takeTurn(
  conversation: Conversation,
  text: string,
  interactive: boolean,
): Promise<void> {
  try {
    await conversation.say(text);
  } catch (error) {
    if (!interactive || !LozaError.isInstance(error) || error.code === 'ERR_LOZA_INTERNAL') {
      throw error;
    }
    process.stderr.write(`loza: ${oneLine(error.message)}\n`);
  }
}

/** A session, and the turn that is being answered. */
class Conversation {
  private session: Session;
  private turn: AbortController | undefined;

  constructor(
    private readonly model: LanguageModel,
    private readonly options: GenerateOptions,
    private readonly system: string | undefined,
    private readonly context: Context,
  ) {
    this.session = model.createSession({ system });
  }

  reset(): void {
    this.session.close();
    this.session = this.model.createSession({ system: this.system });
  }

  /** Stops the answer; false when there is none. */
  stop(): boolean {
    this.turn?.abort();
    return this.turn !== undefined;
  }

  /** Answers one message. What was written of a stopped answer stays in the conversation. */
  async say(content: string): Promise<void> {
    const turn = new AbortController();
    this.turn = turn;
    try {
      await this.answer(content, turn.signal);
    } catch (error) {
      if (!turn.signal.aborted || this.context.signal.aborted) throw error;
    } finally {
      this.turn = undefined;
    }
  }

  private async answer(content: string, stop: AbortSignal): Promise<void> {
    const { session, model, context } = this;
    const signal = AbortSignal.any([stop, context.signal]);
    const begin = (more: GenerateOptions) =>
      session.generate(content, { ...this.options, ...more });
    if (context.json) return context.printJson(resultObject(await begin({ signal }).result()));
    context.note(describeRun(await streamText(begin, context, signal), model));
  }
}
