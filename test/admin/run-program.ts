/** Runs a program while this process goes on serving it. */
import { spawn } from 'node:child_process';

export interface ProgramResult {
  stdout: string;
  stderr: string;
  status: number | null;
}

/** Resolves at its end; it is killed after ten seconds, and its status is then null. */
export async function runProgram(file: string, args: readonly string[]): Promise<ProgramResult> {
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'pipe'], timeout: 10_000 });
  const result: ProgramResult = { stdout: '', stderr: '', status: null };
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    result.stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    result.stderr += text;
  });
  result.status = await new Promise<number | null>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', resolve);
  });
  return result;
}
