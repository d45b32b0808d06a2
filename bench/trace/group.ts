// Two images of one application, recorded as a group: what that does to the bundle of each. What does
// not live here: single services (main.ts).
import { orderOf } from '../../src/serve/testkit-traces.ts';
import { loadTrace } from '../../src/trace/files.ts';
import { Running } from '../images/run.ts';
import { serviceImage, serviceNamed } from '../images/services.ts';
import type { RowWriter } from '../lib/rows.ts';
import type { Workspace } from '../lib/workspace.ts';
import { partsRead } from './needed.ts';
import { Site } from './site.ts';

/** Share of neighbours in `order` that stand in the order in which they were read. */
export function shareInOrder(order: readonly string[], read: readonly string[]): number {
  const place = new Map(read.map((path, at) => [path, at]));
  const places = order.flatMap((path) => place.get(path) ?? []);
  let ascending = 0;
  for (let i = 1; i < places.length; i++) if (places[i]! > places[i - 1]!) ascending++;
  return places.length < 2 ? 1 : ascending / (places.length - 1);
}

/**
 * Records both images at once as one group, reports the runs, and looks at the two bundles.
 *
 * group-NAME-front: of the parts that the image's own run has read, the share within the first parts
 * of its bundle, those that have a place in the order. group-NAME-order: how many of them stand in the
 * order of reading. group-NAME-neighbour: parts among the first that only the other image's run has read.
 */
export async function measureGroup(
  space: Workspace,
  rows: RowWriter,
  rate: string,
  names: readonly [string, string],
): Promise<void> {
  const site = await Site.open(space, rate);
  const images = names.map((name) => ({ service: serviceNamed(name), image: `${name}:new` }));
  for (const { service, image } of images) {
    await site.addImage(serviceImage(service.name, 'new'), image);
  }
  const { worker, close } = await site.worker();
  const running = images.map(
    ({ service, image }) => new Running(space, worker, service, image, ['--trace', 'app']),
  );
  await Promise.all(running.map((each) => each.readyMs()));
  await Promise.all(running.map((each) => each.end()));
  const traces = site.keepTraces(worker);
  await close();
  await site.report(
    images.map(({ image }) => image),
    ...traces,
  );
  const tracers = await Promise.all(traces.map((path) => loadTrace(path)));
  for (const { service, image } of images) {
    const own = tracers.filter((tracer) => tracer.image === image);
    const others = tracers.filter((tracer) => tracer.image !== image);
    if (own.length !== 1 || others.length !== 1) throw new Error('each image leaves one trace');
    const { paths } = orderOf(await site.bundle(image));
    const { ranked } = (await site.image(image)).order;
    const read = partsRead(own[0]!).map(({ path, index }) =>
      index === 0 ? path : `${path}#${index}`,
    );
    // Of contents that the image holds under several names the bundle names one.
    const bundled = new Set(paths);
    const present = read.filter((path) => bundled.has(path));
    const wanted = new Set(present);
    const front = paths.slice(0, ranked);
    const add = (row: string, value: number, unit: string, budget?: number) =>
      rows.add({
        row: `group-${service.name}-${row}`,
        value,
        unit,
        better: 'higher',
        ...(budget === undefined ? {} : { budget }),
      });
    add('front', front.filter((path) => wanted.has(path)).length / present.length, 'share', 1);
    add('order', shareInOrder(front, present), 'share', 0.99);
    add('neighbour', front.filter((path) => !wanted.has(path)).length, 'parts', 1);
  }
}
