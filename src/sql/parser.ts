/**
 * PostgreSQL's own parser (libpg-query, WASM) behind one call that never throws. It owns the module instance and
 * replaces it when a call ended in anything but an SQL error, because its memory is then not to be trusted. It
 * knows nothing of what trees mean.
 */
import { createRequire } from 'node:module';
import { tooCostly } from './cost.ts';

/** A node of the parser's JSON: keys and values as in PostgreSQL's parsenodes.h. */
export type TreeNode = Readonly<Record<string, unknown>>;

/** A tree, or why there is none: `syntax` is PostgreSQL's own verdict, the others are ours. */
export type ParseOutcome =
  | { readonly kind: 'tree'; readonly statements: readonly unknown[] }
  | { readonly kind: 'syntax'; readonly message: string }
  | { readonly kind: 'large' | 'complex' | 'unavailable' };

interface PgQueryModule {
  loadModule(): Promise<void>;
  parseSync(text: string): { readonly stmts?: readonly unknown[] };
}

const EMPTY: ParseOutcome = { kind: 'tree', statements: [] };

export class Parser {
  readonly #textLengthMax: number;
  #module: PgQueryModule | null;

  private constructor(module: PgQueryModule, textLengthMax: number) {
    this.#module = module;
    this.#textLengthMax = textLengthMax;
  }

  /** Loads the WASM. Texts longer than `textLengthMax` characters are not parsed. */
  static async load(textLengthMax: number): Promise<Parser> {
    return new Parser(await loadInstance(), textLengthMax);
  }

  /** Synchronous; 20 to 70 µs for short texts, at most some 30 ms for the largest that are let through. */
  parse(text: string): ParseOutcome {
    if (text.length > this.#textLengthMax) return { kind: 'large' };
    if (text.includes('\0')) return { kind: 'syntax', message: 'the text holds a zero byte' };
    const costly = tooCostly(text);
    if (costly !== null) return { kind: costly };
    if (this.#module === null) return { kind: 'unavailable' };
    if (text === '') return EMPTY;
    try {
      return { kind: 'tree', statements: this.#module.parseSync(text).stmts ?? [] };
    } catch (error) {
      if (error instanceof Error && error.name === 'SqlError')
        return { kind: 'syntax', message: error.message };
      this.#replace();
      return { kind: 'complex' };
    }
  }

  /** Until the new instance is there, nothing parses; a load that fails leaves it so. */
  #replace(): void {
    this.#module = null;
    loadInstance().then(
      (module) => {
        this.#module = module;
      },
      () => {},
    );
  }
}

/** A module instance of its own memory: the package keeps one per load of its CommonJS file. */
async function loadInstance(): Promise<PgQueryModule> {
  const require = createRequire(import.meta.url);
  const path = require.resolve('libpg-query');
  delete require.cache[path];
  const module = require(path) as PgQueryModule;
  await module.loadModule();
  return module;
}
