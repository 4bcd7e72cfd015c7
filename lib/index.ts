// The public API, nothing else. Importing it loads no native code.
export { LanguageModel, type ScoreOptions, type ScoreResult } from './language-model';
export type { Prompt } from './prompt';
export type { Session, SessionOptions } from './session';
export { calibrate } from './calibrate/calibrate';
export type { CalibrateMethod, CalibrateOptions, CalibrateProgress } from './calibrate/options';
export type { CalibrationReport } from './calibrate/report';
export { train, type TrainingReport } from './train/train';
export type { TrainOptions, TrainProgress } from './train/options';
export {
  evaluate,
  type EvalAnswer,
  type EvalArm,
  type EvalCell,
  type EvalResult,
} from './eval/evaluate';
export type { EvalOptions, EvalProgress } from './eval/options';
export type { PerplexityBucket } from './eval/perplexity';
export type { TaskName } from './eval/tasks';
export { probeDevices, type DeviceReport } from './probe-devices';
export { LozaError, type LozaErrorCode, type LozaErrorDetails } from './errors';
export type { LoadOptions, LoadProgress, RopeOptions } from './load-options';
export type { AttentionOption } from './checkpoint/streaming-config';
export type { GenerateOptions, GenerateProgress } from './runner/sampling';
export type { EngineLoad } from './engine/engine';
export type { Generation } from './engine/generation';
export type {
  FinishReason,
  GeneratePart,
  GenerateResult,
  GenerateTimings,
  GenerateUsage,
} from './engine/generate-job';
export type { KvReport, LoadedModelInfo, MemoryReport, ModelInfo, RopeInfo } from './model-info';
export type { ChatMessage } from './tokenizer/chat-template';
export type { DecodeOptions, EncodeOptions, Tokenizer } from './tokenizer/tokenizer';
