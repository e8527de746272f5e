/** Input images in the browser's own storage, so that a reload of the page finds them again. */

const NAME = "img2img";
const IMAGES = "images";
// The newest images; the size of one is limited by what the page uploads.
const KEPT = 24;

export interface KeptImage {
  id: string;
  name: string;
  blob: Blob;
  usedAt: number;
}

function open(): Promise<IDBDatabase> {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(IMAGES, { keyPath: "id" });
  return settled(request);
}

function settled<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Keep an image, and forget the oldest. Storage that is full or forbidden is not an error: the page works without. */
export async function keepImage(image: Omit<KeptImage, "usedAt">): Promise<void> {
  try {
    const database = await open();
    const store = database.transaction(IMAGES, "readwrite").objectStore(IMAGES);
    await settled(store.put({ ...image, usedAt: Date.now() }));
    const all: KeptImage[] = await settled(store.getAll());
    const old = all.sort((a, b) => b.usedAt - a.usedAt).slice(KEPT);
    await Promise.all(old.map(({ id }) => settled(store.delete(id))));
    database.close();
  } catch (error) {
    console.info("the image is not kept for a reload:", error);
  }
}

/** Return a kept image, or null. */
export async function keptImage(id: string): Promise<KeptImage | null> {
  try {
    const database = await open();
    const found = await settled(database.transaction(IMAGES).objectStore(IMAGES).get(id));
    database.close();
    return found ?? null;
  } catch {
    return null;
  }
}
