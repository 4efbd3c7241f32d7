/**
 * A conversation is what a client sends, step by step. It is held once with PostgreSQL itself and once through a
 * pooler, and both must answer the same bytes: PostgreSQL is the model, so no expected value is written down twice.
 * Between the steps other clients may use the server connection (`between`). Only what must differ is masked.
 */
import {
  encodeBind,
  encodeClose,
  encodeDescribe,
  encodeExecute,
  encodeParse,
  encodeQuery,
  SYNC,
} from '../../src/protocol/message-writer.ts';
import { frame, type ReceivedFrame, type ScriptedClient } from '../../test/support/scripted-client.ts';

export interface SendStep {
  readonly kind: 'send';
  readonly bytes: Buffer;
  /** ReadyForQuery messages to wait for. */
  readonly ready: number;
  /** Or this many messages of any kind. */
  readonly frames: number;
  /** Bytes per write; 0 is all at once. */
  readonly piece: number;
}

/** A statement of the superuser on a connection of his own. */
export interface AsideStep {
  readonly kind: 'aside';
  readonly sql: string;
}

export type Step = SendStep | AsideStep;

/** Bytes answered by `ready` ReadyForQuery. */
export function batch(ready: number, ...parts: Buffer[]): Step {
  return { kind: 'send', bytes: Buffer.concat(parts), ready, frames: 0, piece: 0 };
}

/** Bytes answered by `count` messages, none of them ReadyForQuery. */
export function partly(count: number, ...parts: Buffer[]): Step {
  return { kind: 'send', bytes: Buffer.concat(parts), ready: 0, frames: count, piece: 0 };
}

/** A step sent in pieces of `piece` bytes. */
export function inPieces(step: Step, piece: number): Step {
  return step.kind === 'send' ? { ...step, piece } : step;
}

/** A simple query. */
export function q(sql: string): Step {
  return batch(1, encodeQuery(sql));
}

/** Parse, Bind, Describe, Execute, Sync of the unnamed statement. */
export function x(sql: string, values: (string | null)[] = []): Step {
  return batch(1, P('', sql), B('', '', values), D('P', ''), E(''), SYNC);
}

export function aside(sql: string): Step {
  return { kind: 'aside', sql };
}

export const Q: typeof encodeQuery = encodeQuery;
export const P: typeof encodeParse = encodeParse;
export const D: typeof encodeDescribe = encodeDescribe;
export const C: typeof encodeClose = encodeClose;

export function B(portal: string, statement: string, values: (string | null)[] = []): Buffer {
  return encodeBind(portal, statement, values);
}

export function E(portal: string, maxRows = 0): Buffer {
  return encodeExecute(portal, maxRows);
}

/** CopyData. */
export function d(text: string): Buffer {
  return frame('d', text);
}

export interface ConversationOptions {
  /** Called between two steps while the client is idle outside a transaction. */
  between?: (() => Promise<void>) | undefined;
  aside: (sql: string) => Promise<void>;
}

/** Holds the conversation and returns what came back, one line per message, one list per step. */
export async function converse(
  client: ScriptedClient,
  steps: readonly Step[],
  options: ConversationOptions,
): Promise<string[][]> {
  const transcript: string[][] = [];
  let idle = true;
  for (const step of steps) {
    if (idle) await options.between?.();
    if (step.kind === 'aside') {
      await options.aside(step.sql);
      continue;
    }
    if (step.piece > 0) await client.sendInPieces(step.bytes, step.piece);
    else client.send(step.bytes);
    const lines: string[] = [];
    transcript.push(lines);
    for (let ready = 0, frames = 0; ready < step.ready || frames < step.frames; frames++) {
      let received: ReceivedFrame;
      try {
        received = await client.readFrame(READ_TIMEOUT_MS);
      } catch (error) {
        lines.push(
          `(${(error as Error).message.replace(/^the connection ended.*/, 'the connection ended')})`,
        );
        return transcript;
      }
      lines.push(frameText(received));
      if (received.type !== 'Z') continue;
      ready++;
      idle = received.body[0] === 0x49;
    }
    if (step.ready === 0) idle = false;
  }
  return transcript;
}

/** Table OIDs, process ids and source lines differ between two runs; everything else must not. */
function frameText({ type, body }: ReceivedFrame): string {
  if (type === 'T') return `T ${rowDescriptionText(body)}`;
  let text = body.toString('latin1');
  if (type === 'A') text = text.slice(4);
  return `${type} ${text.replaceAll(/[\0-\x08\x0b-\x1f\x7f-\x9f]/g, (char) => `\\${char.charCodeAt(0).toString(16)}`)}`;
}

function rowDescriptionText(body: Buffer): string {
  const columns: string[] = [];
  let at = 2;
  for (let count = body.readInt16BE(0); count > 0; count--) {
    const nameEnd = body.indexOf(0, at);
    const name = body.toString('utf8', at, nameEnd);
    columns.push(
      `${name}:${body.readInt32BE(nameEnd + 7)}/${body.readInt16BE(nameEnd + 11)}/${body.readInt32BE(nameEnd + 13)}/${body.readInt16BE(nameEnd + 17)}`,
    );
    at = nameEnd + 19;
  }
  return columns.join(' ');
}

const READ_TIMEOUT_MS = 3_000;
