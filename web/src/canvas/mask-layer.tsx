import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { t } from "../i18n";
import type { StoredImage } from "../state/images";
import { apply, draw, type Operation, type Point } from "./operations";
import { add, brushSize, maskCanvas, operations, tool, view } from "./state";

type Stroke = Operation & { kind: "stroke" };

/** The mask over the image, on which brush and eraser work. */
export function MaskLayer({ image }: { image: StoredImage }) {
  const ref = useRef<HTMLCanvasElement>(null);
  const stroke = useRef<Stroke | null>(null);
  const cursor = useSignal<Point | null>(null);
  const isPainting = tool.value === "brush" || tool.value === "eraser";
  useEffect(() => {
    maskCanvas.value = ref.current;
    return () => {
      maskCanvas.value = null;
    };
  }, []);
  useLayoutEffect(() => {
    const context = ref.current?.getContext("2d");
    if (context) draw(context, operations.value);
  }, [operations.value, image.id]);

  /** Two fingers zoom: what the first one has painted so far is removed. */
  const abandon = () => {
    const context = ref.current?.getContext("2d");
    if (stroke.current && context) draw(context, operations.value);
    stroke.current = null;
  };
  const begin = (event: PointerEvent) => {
    if (!event.isPrimary) abandon();
    if (!isPainting || event.button !== 0 || !event.isPrimary) return;
    ref.current?.setPointerCapture(event.pointerId);
    const isEraser = tool.value === "eraser";
    stroke.current = { kind: "stroke", points: [pointOf(event)], size: brushSize.value, isEraser };
    drawTail();
  };
  const move = (event: PointerEvent) => {
    if (isPainting) cursor.value = pointOf(event);
    if (!stroke.current || !event.isPrimary) return;
    // Fast movements have more points than events.
    for (const one of event.getCoalescedEvents?.() ?? [event]) stroke.current.points.push(pointOf(one));
    drawTail();
  };
  const end = () => {
    if (stroke.current) add(stroke.current);
    stroke.current = null;
  };
  /** Draw the newest part of the stroke. */
  const drawTail = () => {
    const context = ref.current?.getContext("2d");
    if (context && stroke.current)
      apply(context, { ...stroke.current, points: stroke.current.points.slice(-8) });
  };
  const pointOf = ({ clientX, clientY }: PointerEvent): Point => {
    const box = ref.current?.getBoundingClientRect() ?? new DOMRect();
    return {
      x: ((clientX - box.left) * image.width) / box.width,
      y: ((clientY - box.top) * image.height) / box.height,
    };
  };
  return (
    <>
      <canvas
        ref={ref}
        class={`mask ${isPainting ? "is-painting" : ""}`}
        width={image.width}
        height={image.height}
        role="img"
        aria-label={t().canvas.mask}
        onPointerDown={begin}
        onPointerMove={move}
        onPointerUp={end}
        onPointerCancel={end}
        onPointerLeave={() => (cursor.value = null)}
      />
      {isPainting && cursor.value && <Cursor image={image} at={cursor.value} />}
    </>
  );
}

/** A circle of the size of the brush. */
function Cursor({ image, at }: { image: StoredImage; at: Point }) {
  const size = brushSize.value;
  const percent = (pixels: number, of: number) => `${(100 * pixels) / of}%`;
  const line = `${1 / view.value.scale}px`;
  return (
    <span
      class="brush-cursor"
      aria-hidden="true"
      style={{
        left: percent(at.x - size / 2, image.width),
        top: percent(at.y - size / 2, image.height),
        width: percent(size, image.width),
        height: percent(size, image.height),
        borderWidth: line,
        boxShadow: `0 0 0 ${line} #000`,
      }}
    />
  );
}
