/**
 * One configuration file: its text, its parsed table and the lines of its keys; and the small files that hold a
 * secret. Owns reading and the faults of reading; must not know what any key means. No message quotes file content:
 * the lines around a syntax error may be passwords.
 */
import { readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import { parse, TomlError } from 'smol-toml';
import type { FaultLog, Place } from './faults.ts';
import { scanTomlPositions, type TomlPath, type TomlPositions } from './toml-position.ts';

export type TomlTable = Record<string, unknown>;

export interface ConfigFile {
  /** As it was named on the command line; faults carry it. */
  readonly name: string;
  /** Relative paths in the file start here. */
  readonly directory: string;
  readonly table: TomlTable;
  readonly positions: TomlPositions;
}

const FILE_BYTES_MAX = 4 * 1024 * 1024;
const SECRET_BYTES_MAX = 64 * 1024;

/** True for a TOML table, false for everything else that is an object. */
export function isTable(value: unknown): value is TomlTable {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date);
}

/** Reads a file; a missing one is an empty one with a warning, as with PgDog. Every other trouble is a fault. */
export function readConfigFile(name: string, log: FaultLog): ConfigFile {
  const directory = path.dirname(path.resolve(name));
  const place: Place = { file: name, line: 0, key: '' };
  let text = '';
  try {
    text = readText(name, FILE_BYTES_MAX);
    return { name, directory, table: parse(text, { integersAsBigInt: 'asNeeded' }), positions: scan(text) };
  } catch (error) {
    if (isMissing(error)) log.warn(place, 'the file does not exist; defaults are used');
    else if (error instanceof TomlError) {
      log.fault({ ...place, line: error.line }, firstLine(error.message));
    } else log.fault(place, readingProblem(error));
  }
  return { name, directory, table: {}, positions: scan('') };
}

/** The content of a file that holds a secret, one line end at its end taken off; or the fault's sentence. */
export function readSecretFile(file: string): { value: string } | { problem: string } {
  try {
    const value = readText(file, SECRET_BYTES_MAX).replace(/\r?\n$/, '');
    return value === '' ? { problem: `the file ${file} is empty` } : { value };
  } catch (error) {
    return { problem: `the file ${file}: ${readingProblem(error)}` };
  }
}

/** The line of the longest beginning of the path that the file has; 0 when it has none of it. */
export function lineOf(file: ConfigFile, keyPath: TomlPath): number {
  for (let length = keyPath.length; length > 0; length--) {
    const line = file.positions.lineOf(keyPath.slice(0, length));
    if (line !== undefined) return line;
  }
  return 0;
}

/** Text of a file of at most `bytesMax` bytes. Throws the system's error, or one of ours. */
export function readText(file: string, bytesMax: number): string {
  const stat = statSync(file);
  // A pipe or a device has no size to check and may never end; Kubernetes and Docker mount ordinary files.
  if (!stat.isFile()) throw new FileProblem('is not an ordinary file');
  if (stat.size > bytesMax) throw new FileProblem(`is larger than ${bytesMax} bytes`);
  const bytes = readFileSync(file);
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new FileProblem('is not UTF-8 text');
  }
}

/** A sentence about why a file could not be read. */
export function readingProblem(error: unknown): string {
  if (error instanceof FileProblem) return error.message;
  const code = (error as { code?: unknown }).code;
  return typeof code === 'string' ? `cannot be read (${code})` : 'cannot be read';
}

class FileProblem extends Error {
  override name = 'FileProblem';
}

function isMissing(error: unknown): boolean {
  return (error as { code?: unknown }).code === 'ENOENT';
}

function scan(text: string): TomlPositions {
  return scanTomlPositions(text);
}

function firstLine(message: string): string {
  return message.split('\n', 1)[0]!.trim();
}
