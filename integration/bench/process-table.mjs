/**
 * Processor time and resident memory of a process, from Linux's process table (proc(5)). Elsewhere every figure is
 * null. Must not know which process it looks at.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

const SAMPLE_MS = 250;
const STABLE_SAMPLES = 8;
const STABLE_TIMEOUT_MS = 30_000;
const STABLE_SPREAD_KB = 512;
const STABLE_SPREAD = 0.005;
const PEAK_SAMPLE_MS = 10;

/** Microseconds of one clock tick, the unit of /proc/PID/stat: `sysconf(_SC_CLK_TCK)` per second. */
export function readTickUs() {
  try {
    return 1_000_000 / Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }));
  } catch {
    return 10_000;
  }
}

/**
 * User and system time of all threads so far, in microseconds.
 * @param {number} pid
 * @param {number} tickUs
 * @returns {number | null}
 */
export function cpuTimeUs(pid, tickUs) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    // The name in field 2 may hold spaces and parentheses, so count from its end; utime and stime are 14 and 15.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[11]) + Number(fields[12])) * tickUs;
  } catch {
    return null;
  }
}

/**
 * Resident memory now, in kB of 1,024 bytes.
 * @param {number} pid
 */
export function residentKb(pid) {
  return statusKb(pid, 'VmRSS');
}

/**
 * Resident memory once it stopped moving (or after 30 s), in kB: no collection is forced.
 * @param {number} pid
 * @returns {Promise<number | null>}
 */
export async function stableResidentKb(pid) {
  /** @type {number[]} */
  const samples = [];
  const deadlineMs = performance.now() + STABLE_TIMEOUT_MS;
  for (;;) {
    const now = residentKb(pid);
    if (now === null) return null;
    samples.push(now);
    const recent = samples.slice(-STABLE_SAMPLES);
    const spread = Math.max(...recent) - Math.min(...recent);
    const isStable =
      samples.length >= STABLE_SAMPLES && spread <= Math.max(STABLE_SPREAD_KB, now * STABLE_SPREAD);
    if (isStable || performance.now() > deadlineMs) return now;
    await delay(SAMPLE_MS);
  }
}

/**
 * Watches the largest resident memory from now on; the returned function ends that and gives it in kB. The kernel's
 * own high-water mark where it can be reset, samples every 10 ms otherwise.
 * @param {number} pid
 * @returns {() => number | null}
 */
export function watchPeakKb(pid) {
  let isMarkReset = true;
  try {
    writeFileSync(`/proc/${pid}/clear_refs`, '5');
  } catch {
    isMarkReset = false;
  }
  let peak = residentKb(pid);
  const timer = setInterval(() => {
    const now = residentKb(pid);
    if (now !== null && (peak === null || now > peak)) peak = now;
  }, PEAK_SAMPLE_MS);
  return () => {
    clearInterval(timer);
    const mark = isMarkReset ? statusKb(pid, 'VmHWM') : null;
    return mark === null ? peak : Math.max(mark, peak ?? 0);
  };
}

/** Open files that a process started from here may have; null where that is unknown. */
export function openFilesMax() {
  try {
    const line = /^Max open files\s+(\S+)/m.exec(readFileSync('/proc/self/limits', 'latin1'));
    return line ? (line[1] === 'unlimited' ? Number.POSITIVE_INFINITY : Number(line[1])) : null;
  } catch {
    return null;
  }
}

/**
 * @param {number} pid
 * @param {string} field
 * @returns {number | null}
 */
function statusKb(pid, field) {
  try {
    const line = new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(
      readFileSync(`/proc/${pid}/status`, 'latin1'),
    );
    return line ? Number(line[1]) : null;
  } catch {
    return null;
  }
}
