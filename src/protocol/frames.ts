/**
 * Messages as frames, for those who relay bytes and decode nothing: the length in a header, and where a request of
 * a client ends. Pure; what a body holds is the business of the decoders beside this file.
 *
 * Hot: called for every message in both directions.
 */
import { FrontendMessage } from './codes.ts';

/** Four bytes of `buffer` as a signed number, without a bounds check: the caller has seen that they are there. */
export function readInt32(buffer: Buffer, at: number): number {
  return (
    ((buffer[at] as number) << 24) |
    ((buffer[at + 1] as number) << 16) |
    ((buffer[at + 2] as number) << 8) |
    (buffer[at + 3] as number)
  );
}

/**
 * True when `buffer[start, end)` holds all messages of a request, up to Query, Sync, Flush or FunctionCall; also
 * where a length makes no sense, so that whoever handles the message finds out.
 */
export function hasWholeRequest(buffer: Buffer, start: number, end: number): boolean {
  let at = start;
  while (end - at >= 5) {
    const next = at + readInt32(buffer, at + 1) + 1;
    if (next <= at) return true;
    if (next > end) return false;
    switch (buffer[at]) {
      case FrontendMessage.Query:
      case FrontendMessage.Sync:
      case FrontendMessage.Flush:
      case FrontendMessage.FunctionCall:
      case FrontendMessage.Terminate:
        return true;
      default:
        at = next;
    }
  }
  return false;
}

/** True for the messages that a request is made of: what a client sends while nothing is under way. */
export function isRequestType(type: number): boolean {
  switch (type) {
    case FrontendMessage.Query:
    case FrontendMessage.Parse:
    case FrontendMessage.Bind:
    case FrontendMessage.Describe:
    case FrontendMessage.Execute:
    case FrontendMessage.Close:
    case FrontendMessage.Sync:
    case FrontendMessage.Flush:
    case FrontendMessage.FunctionCall:
      return true;
    default:
      return false;
  }
}
