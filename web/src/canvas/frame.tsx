import { useRef } from "preact/hooks";
import { t } from "../i18n";
import { set, values } from "../state/form";
import type { StoredImage } from "../state/images";
import { situation } from "../state/situation";

export type Side = "left" | "top" | "right" | "bottom";
export const SIDES: readonly Side[] = ["left", "top", "right", "bottom"];
export type Margins = Record<Side, number>;

const MAX_MARGIN = 4096;
const NO_MARGINS: Margins = { left: 0, top: 0, right: 0, bottom: 0 };

/** The pixels to add on each side of the image. */
export function margins(): Margins {
  return { ...NO_MARGINS, ...values.value.outpaint };
}

/** Set a margin, as a multiple of the pixels that the model works with. */
export function setMargin(side: Side, pixels: number): void {
  const multiple = situation.value?.card.size_multiple ?? 8;
  const rounded = Math.min(Math.max(Math.round(pixels / multiple) * multiple, 0), MAX_MARGIN);
  const changed = { ...margins(), [side]: rounded };
  const isEmpty = SIDES.every((one) => changed[one] === 0);
  set({ outpaint: isEmpty ? undefined : changed });
}

/** A handle on an edge of the frame, which is dragged, or moved by the arrow keys. */
export function Handle({ side, image }: { side: Side; image: StoredImage }) {
  const drag = useRef<{ at: number; margin: number; scale: number } | null>(null);
  const isHorizontal = side === "left" || side === "right";
  const outward = side === "right" || side === "bottom" ? 1 : -1;
  const value = margins()[side];
  const begin = (event: PointerEvent & { currentTarget: HTMLElement }) => {
    event.preventDefault();
    event.currentTarget.focus();
    event.currentTarget.setPointerCapture(event.pointerId);
    const box = event.currentTarget.closest(".image-canvas")?.querySelector(".mask")?.getBoundingClientRect();
    const at = isHorizontal ? event.clientX : event.clientY;
    drag.current = { at, margin: value, scale: box ? image.width / box.width : 1 };
  };
  const move = (event: PointerEvent) => {
    if (!drag.current) return;
    const distance = (isHorizontal ? event.clientX : event.clientY) - drag.current.at;
    setMargin(side, drag.current.margin + distance * outward * drag.current.scale);
  };
  const onKey = (event: KeyboardEvent) => {
    const multiple = (situation.value?.card.size_multiple ?? 8) * (event.shiftKey ? 8 : 1);
    const direction = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (direction === undefined) return;
    event.preventDefault();
    setMargin(side, value + direction * outward * multiple);
  };
  return (
    <div
      class={`handle is-${side}`}
      role="slider"
      tabIndex={0}
      aria-label={t().canvas.sides[side]}
      aria-valuemin={0}
      aria-valuemax={MAX_MARGIN}
      aria-valuenow={value}
      aria-orientation={isHorizontal ? "horizontal" : "vertical"}
      onPointerDown={begin}
      onPointerMove={move}
      onPointerUp={() => (drag.current = null)}
      onPointerCancel={() => (drag.current = null)}
      onKeyDown={onKey}
    />
  );
}
