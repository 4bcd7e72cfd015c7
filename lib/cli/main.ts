#!/usr/bin/env node
import { inspect } from 'node:util';
import { Command, CommanderError } from 'commander';

import { normalizeArguments } from '../bench/grammar';
import { LozaError, show } from '../errors';
import { registerBench } from './bench';
import { registerCalibrate } from './calibrate';
import { packageVersion } from './build-info';
import { registerChat } from './chat';
import { BadResult, Context } from './context';
import { registerDemo } from './demo';
import { registerEval } from './eval';
import { oneLine } from './format';
import { registerGenerate } from './generate';
import { registerInfo } from './info';
import { registerInspect } from './inspect';
import { registerSelftest } from './selftest';
import { registerSoak } from './soak';
import { registerTrain } from './train';
import { registerVerify } from './verify';

const examples = `
First steps:
  loza demo                                  see what ZigZag attention does, in 20 seconds
  loza inspect models/loza-tiny              what a checkpoint is, before it is loaded
  loza generate models/loza-tiny "Fellow-Citizens"
  loza chat models/loza-tiny

A checkpoint is a folder with config.json and safetensors, as Hugging Face publishes it.
Each command explains itself: loza <command> --help.`;

const interruptedCode = 130;

function buildProgram(context: Context): Command {
  const program = new Command('loza')
    .description('Runs MLA language models with LongCat ZigZag Attention (LoZA).')
    .version(packageVersion(), '-V, --version', 'print the version')
    .option('--json', 'print results, and errors, as JSON on stdout')
    .option('--debug', 'show the stack of an error (or set LOZA_DEBUG=1)')
    .helpOption('-h, --help', 'explain the command')
    .configureHelp({ showGlobalOptions: true, helpWidth: context.width })
    // Errors are shown by `report`, in one place.
    .configureOutput({ outputError: () => {} })
    .addHelpText('after', examples)
    .hook('preAction', (command) => {
      context.json = command.opts<{ json?: boolean }>().json === true;
    });
  registerGenerate(program, context);
  registerChat(program, context);
  registerInspect(program, context);
  registerVerify(program, context);
  registerSelftest(program, context);
  registerSoak(program, context);
  registerInfo(program, context);
  registerDemo(program, context);
  registerEval(program, context);
  registerBench(program, context);
  registerCalibrate(program, context);
  registerTrain(program, context);
  return program;
}

/** Runs the command line and returns the exit code. */
async function main(argv: readonly string[]): Promise<number> {
  const controller = new AbortController();
  const context = new Context(controller.signal);
  const interrupt = () => {
    if (controller.signal.aborted) process.exit(interruptedCode);
    controller.abort(new Error('interrupted'));
  };
  process.on('SIGINT', interrupt);
  const program = buildProgram(context);
  let failed = program;
  for (const command of withSubcommands(program)) {
    command.exitOverride((error) => {
      failed = command;
      throw error;
    });
  }
  try {
    await program.parseAsync(normalizeArguments(argv.slice(2)), { from: 'user' });
    return controller.signal.aborted ? interruptedCode : 0;
  } catch (error) {
    if (controller.signal.aborted) return interruptedCode;
    return report(error, argv, failed);
  } finally {
    process.off('SIGINT', interrupt);
  }
}

/** Tells the user what went wrong: one line on stderr, or an object on stdout with --json. */
function report(error: unknown, argv: readonly string[], command: Command): number {
  // Help that was asked for, or the version, is no error; without any command, help is the answer.
  if (error instanceof CommanderError && isHelp(error)) return error.exitCode;
  if (isSet(argv, '--debug') || isTruthy(process.env['LOZA_DEBUG'])) {
    process.stderr.write(`${inspect(error)}\n`);
  }
  const described = asLozaError(error, command);
  const message = oneLine(described.message);
  if (isSet(argv, '--json') && !(error instanceof BadResult)) {
    const { code, value, hint } = described;
    const object = { error: { code, message, value: plain(value), hint } };
    process.stdout.write(`${JSON.stringify(object)}\n`);
  } else {
    process.stderr.write(
      `loza: ${error instanceof BadResult ? oneLine(error.message) : message}\n`,
    );
  }
  return 1;
}

/** Whatever was thrown, as an error that says what to do. `command`: which could not be parsed. */
function asLozaError(error: unknown, command: Command): LozaError {
  if (LozaError.isInstance(error)) return error;
  if (error instanceof CommanderError) {
    const problem = oneLine(error.message.replace(/^error: /, '')).replace(/\.$/, '');
    const hint = `See ${fullName(command)} --help`;
    return new LozaError('ERR_LOZA_INVALID_ARG', problem, { hint });
  }
  const problem = error instanceof Error ? error.message : String(error);
  const hint = 'This is a bug in loza: please report it with what --debug shows';
  return new LozaError('ERR_LOZA_INTERNAL', problem, { hint, cause: error });
}

/** A command and all below it. */
function withSubcommands(command: Command): Command[] {
  return [command, ...command.commands.flatMap(withSubcommands)];
}

/** As the user types it: 'loza bench compare'. */
function fullName(command: Command): string {
  return command.parent === null ? command.name() : `${fullName(command.parent)} ${command.name()}`;
}

function isHelp({ code }: CommanderError): boolean {
  return ['commander.help', 'commander.helpDisplayed', 'commander.version'].includes(code);
}

/** Whether a global flag was given, also where the command line could not be parsed. */
function isSet(argv: readonly string[], flag: string): boolean {
  const end = argv.indexOf('--');
  return argv.slice(2, end < 0 ? undefined : end).includes(flag);
}

function isTruthy(value: string | undefined): boolean {
  return value !== undefined && value !== '' && value !== '0';
}

/** An error's value as JSON can hold it. */
function plain(value: unknown): unknown {
  const simple = ['string', 'number', 'boolean', 'undefined'].includes(typeof value);
  return simple || value === null ? value : show(value);
}

// A reader that has seen enough (loza inspect | head) is no error.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  process.exit(error.code === 'EPIPE' ? 0 : 1);
});

void main(process.argv).then((code) => {
  process.exitCode = code;
});
