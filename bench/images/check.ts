// node bench/images/check.ts [SERVICE...]: starts each service image in both versions and waits until it
// is ready; says how long that took with everything local. For whoever changes a recipe.
import { enclose } from '../lib/enclosure.ts';
import { checkBuilt, startServer, Worker } from '../lib/program.ts';
import { Workspace } from '../lib/workspace.ts';
import { Running } from './run.ts';
import { allServices, buildServices, serviceImage, serviceNamed } from './services.ts';

const names = process.argv.slice(2);
const services = names.length > 0 ? names.map(serviceNamed) : allServices();
const versions = ['old', 'new'] as const;
// Built out here: the namespace has no way to the packages.
await buildServices(
  services.map(({ name }) => name),
  [...versions],
);
const images = services.flatMap((service) =>
  versions.map((version) => ({ service, version, source: serviceImage(service.name, version) })),
);
await enclose('service-check', 'own');
checkBuilt();
const space = new Workspace('service-check');
try {
  const server = await startServer(space, space.makeDirectory('data'));
  const worker = await Worker.start(space, space.makeDirectory('root'), server);
  for (const { service, version, source } of images) {
    const image = `${service.name}:${version}`;
    await worker.run('image', 'add', source, '--name', image);
    const directory = space.makeDirectory('all');
    await worker.run('mount', image, directory, '--rw', 'off', '--wait');
    await worker.run('umount', directory);
    const running = new Running(space, worker, service, image, []);
    console.log(`${image}: ready after ${await running.readyMs()} ms`);
    await running.end();
  }
} finally {
  await space.close();
}
