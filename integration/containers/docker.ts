/**
 * The Docker engine of this machine, asked through its command line: whether it can be used at all, and the services
 * of docker-compose.yml under a project name of their own. Knows nothing of PostgreSQL.
 */
import { execFile, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const OVERRIDE = 'integration/containers/docker-compose.test.yml';
/** An engine that answers does so at once; one on another machine may be gone. */
const ANSWER_TIMEOUT_MS = 5_000;

export interface Outcome {
  /** Exit code of the command; -1 when it did not end by itself. */
  code: number;
  stdout: string;
  stderr: string;
}

/**
 * Why containers cannot be tested here, or null when they can. Pulls the base images that the engine lacks, which
 * takes minutes; without an engine it takes milliseconds.
 */
export function whyNoContainers(): string | null {
  const ask = (args: string[], timeout = ANSWER_TIMEOUT_MS): boolean =>
    spawnSync('docker', args, { timeout, stdio: 'ignore' }).status === 0;
  if (!ask(['version', '--format', '{{.Server.Version}}'])) return 'no Docker engine answers';
  if (!ask(['compose', 'version'])) return 'there is no docker compose';
  for (const image of baseImages()) {
    const isHere = ask(['image', 'inspect', image]) || ask(['pull', '--quiet', image], 600_000);
    if (!isHere) return `the image ${image} is not here and cannot be pulled`;
  }
  return null;
}

function baseImages(): Set<string> {
  const stages = readFileSync(`${ROOT}/Dockerfile`, 'utf8').matchAll(/^FROM (\S+)/gm);
  const services = readFileSync(`${ROOT}/docker-compose.yml`, 'utf8').matchAll(/^ +image: (\S+:\S+)$/gm);
  return new Set([...stages, ...services].map((match) => match[1]!));
}

/** Runs docker to its end; `env` is added to the environment, so that a secret need not be an argument. */
export function docker(args: readonly string[], env: Record<string, string> = {}): Promise<Outcome> {
  return new Promise((resolve) => {
    const options = { cwd: ROOT, env: { ...process.env, ...env }, maxBuffer: 64 * 1024 * 1024 };
    const child = execFile('docker', args, options, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === 'number' ? error.code : -1;
      resolve({ code, stdout, stderr });
    });
    child.stdin?.end();
  });
}

/** One start of docker-compose.yml, with names and volumes that no other has. */
export class ComposeProject {
  readonly name: string;

  constructor(name: string) {
    this.name = name;
  }

  run(args: readonly string[], env: Record<string, string> = {}): Promise<Outcome> {
    const files = ['--file', 'docker-compose.yml', '--file', OVERRIDE];
    return docker(['compose', '--project-name', this.name, '--progress', 'quiet', ...files, ...args], env);
  }

  /** Standard output, trimmed. Throws with all the command said when it fails. */
  async ask(args: readonly string[], env: Record<string, string> = {}): Promise<string> {
    const { code, stdout, stderr } = await this.run(args, env);
    if (code !== 0)
      throw new Error(`docker compose ${args.join(' ')}: exit code ${code}\n${stdout}${stderr}`);
    return stdout.trim();
  }

  /** A field of `docker inspect`, in Go's template language, of the one container of a service. */
  async inspect(service: string, template: string): Promise<string> {
    const id = await this.ask(['ps', '--all', '--quiet', service]);
    const { code, stdout, stderr } = await docker(['inspect', '--format', template, id]);
    if (code !== 0) throw new Error(`docker inspect of ${service}: ${stderr}`);
    return stdout.trim();
  }
}
