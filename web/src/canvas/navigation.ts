import { useRef } from "preact/hooks";
import type { Point } from "./operations";
import { pan, tool, zoom } from "./state";

/**
 * Zoom and pan: by Ctrl and the wheel, by dragging with the middle button or the tool "move", and with two fingers.
 * Returns the handlers of the element around the image.
 */
export function useNavigation() {
  const pointers = useRef(new Map<number, Point>());
  const onWheel = (event: WheelEvent & { currentTarget: HTMLElement }) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoom(
      Math.exp(-event.deltaY / 200),
      fromCentre(event.currentTarget, { x: event.clientX, y: event.clientY }),
    );
  };
  const onPointerDown = (event: PointerEvent) => {
    const isNavigation = event.button === 1 || event.pointerType === "touch" || tool.value === "move";
    if (isNavigation) pointers.current.set(event.pointerId, { x: event.clientX, y: event.clientY });
  };
  const onPointerMove = (event: PointerEvent & { currentTarget: HTMLElement }) => {
    const before = pointers.current.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    const other = [...pointers.current].find(([id]) => id !== event.pointerId)?.[1];
    pointers.current.set(event.pointerId, now);
    if (other) {
      const factor = distance(now, other) / Math.max(distance(before, other), 1);
      const middle = { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 };
      zoom(factor, fromCentre(event.currentTarget, middle));
      pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    } else if (tool.value === "move" || event.buttons === 4) {
      pan(now.x - before.x, now.y - before.y);
    }
  };
  const onPointerUp = (event: PointerEvent) => void pointers.current.delete(event.pointerId);
  return { onWheel, onPointerDown, onPointerMove, onPointerUp, onPointerCancel: onPointerUp };
}

function distance(a: Point, b: Point): number {
  return Math.hypot(a.x - b.x, a.y - b.y);
}

function fromCentre(element: HTMLElement, { x, y }: Point): Point {
  const box = element.getBoundingClientRect();
  return { x: x - box.left - box.width / 2, y: y - box.top - box.height / 2 };
}
