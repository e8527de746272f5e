import type { Job, JobImage } from "../api/generated/types.gen";

const MAX_LENGTH = 48;

/** The name of the file of a result: the words of its prompt and its seed, or the id of a job without a prompt. */
export function fileName({ id, request }: Pick<Job, "id" | "request">, { index, seed }: JobImage): string {
  const { prompt, instruction, task } = request as { prompt?: string; instruction?: string; task: string };
  const words = (prompt || instruction || "").toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  let name = "";
  for (const word of words) {
    if (name && name.length + word.length >= MAX_LENGTH) break;
    name += name ? `-${word}` : word.slice(0, MAX_LENGTH);
  }
  return name ? `${name}-${seed}.png` : `${task}-${id.slice(0, 8)}-${index}.png`;
}
