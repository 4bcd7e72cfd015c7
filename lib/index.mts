// ES modules get the same classes as CommonJS: a second build would have a second native state.
export * from './index.js';
