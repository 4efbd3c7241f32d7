/**
 * The Syncs behind a COPY from the client. While PostgreSQL reads COPY data it ignores Sync (copyfromparse.c,
 * CopyGetData): libpq sends one right after Execute and a second after CopyDone. Which of them are answered is a
 * matter of the queue alone; this file knows nothing else.
 */
import { PendingKind, type PendingResponses } from './pending-responses.ts';
import type { PendingData, ServerOwner } from './server-owner.ts';

type Queue = PendingResponses<ServerOwner, PendingData>;

/**
 * The COPY at the head is complete: what stands between the request and the end of the data in the queue was read
 * as part of the COPY, so no answer to it comes. Answers true when the Sync that closes the request is still to
 * be sent.
 */
export function dropSwallowed(pending: Queue): boolean {
  const end = copyEndIndex(pending);
  if (end === 0) return false;
  const kind = pending.kind as PendingKind;
  const { owner, action, data } = pending;
  for (let count = 0; count <= end; count++) pending.pop();
  const open = pending.length === 0 && kind === PendingKind.Execute;
  pending.unshift(kind, action, owner, data);
  return open;
}

/**
 * The COPY at the head failed: nobody can know how many of the Syncs behind it were read as part of it before.
 * Answers true when there are any.
 */
export function doubtSyncsOfCopy(pending: Queue): boolean {
  const end = copyEndIndex(pending);
  return doubtSyncs(pending, 1, end === 0 ? pending.length : end);
}

/** Turns the Syncs in `[from, to)` of the queue into ones that may never be answered; true when there were any. */
export function doubtSyncs(pending: Queue, from: number, to: number): boolean {
  let found = false;
  for (let index = from; index < to; index++) {
    if (pending.kindAt(index) !== PendingKind.Sync) continue;
    pending.setKindAt(index, PendingKind.MaybeSync);
    found = true;
  }
  return found;
}

/** Where the data of the COPY at the head end in the queue; 0 when the client has not ended them. */
function copyEndIndex(pending: Queue): number {
  for (let index = 1; index < pending.length; index++) {
    if (pending.kindAt(index) === PendingKind.CopyEnd) return index;
  }
  return 0;
}
