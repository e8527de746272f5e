import { expect, test } from "vitest";
import { newId } from "./new-id";

test("ids are UUIDs of version 4, also without `crypto.randomUUID`", () => {
  const own = Object.getOwnPropertyDescriptor(crypto, "randomUUID");
  Object.defineProperty(crypto, "randomUUID", { value: undefined, configurable: true });
  const ids = Array.from({ length: 200 }, newId);
  if (own) Object.defineProperty(crypto, "randomUUID", own);
  else Reflect.deleteProperty(crypto, "randomUUID");
  for (const id of ids)
    expect(id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  expect(new Set(ids).size).toBe(ids.length);
});
