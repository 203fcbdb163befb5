// MfCloud: pixels with depth as points or as a surface, first seen by the very camera that took the picture.
(() => {
  const VERTEX = `#version 300 es
    in vec3 place; in vec3 color; uniform mat4 view; uniform vec4 lens; uniform vec2 clip; uniform float size; out vec3 tint;
    void main() {
      vec4 p = view * vec4(place, 1.0);
      float z = -p.z;
      gl_Position = vec4(lens.x * p.x + lens.z * z, lens.y * p.y + lens.w * z,
        (z * (clip.y + clip.x) - 2.0 * clip.x * clip.y) / (clip.y - clip.x), z);
      gl_PointSize = clamp(size / max(z, clip.x), 1.0, 24.0);
      tint = color;
    }`;
  const FRAGMENT = `#version 300 es
    precision mediump float; in vec3 tint; out vec4 color;
    void main() { color = vec4(tint, 1.0); }`;

  // Pixels beside a jump: (max - min over 3x3) > rtol * depth, holes aside.
  function edges(depth, width, height, rtol) {
    const keep = new Uint8Array(depth.length);
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const i = y * width + x, d = depth[i];
        if (!(d > 0)) continue;
        let low = d, high = d;
        for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++)
          for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
            const e = depth[v * width + u];
            if (e > 0) { low = Math.min(low, e); high = Math.max(high, e); }
          }
        keep[i] = rtol > 0 && high - low > rtol * d ? 0 : 1;
      }
    return keep;
  }

  class Cloud {
    constructor(canvas, depth, pixels, meta) {
      this.canvas = canvas;
      this.meta = meta;
      const gl = (this.gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true }));
      if (!gl) throw new Error("This browser has no WebGL 2, so it cannot show the scene in 3D.");
      this.program = this.build();
      this.fill(depth, pixels);
      this.kind = "points";
      this.home();
      this.listen();
      this.watcher = new ResizeObserver(() => this.draw());
      this.watcher.observe(canvas);
    }

    build() {
      const gl = this.gl, program = gl.createProgram();
      for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
        const shader = gl.createShader(kind);
        gl.shaderSource(shader, source.trim());
        gl.compileShader(shader);
        gl.attachShader(program, shader);
      }
      gl.linkProgram(program);
      if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error("The 3D view could not start.");
      return program;
    }

    fill(depth, pixels) {
      const { width, height, camera, edge_rtol } = this.meta, gl = this.gl;
      const keep = edges(depth, width, height, edge_rtol);
      const places = new Float32Array(3 * depth.length), colors = new Uint8Array(3 * depth.length);
      const points = [], faces = [], seen = [];
      for (let y = 0; y < height; y++)
        for (let x = 0; x < width; x++) {
          const i = y * width + x, d = depth[i];
          // OpenGL axes: y up, the camera looks along -z.
          places.set([((x + 0.5 - camera.cx) / camera.fx) * d, (-(y + 0.5 - camera.cy) / camera.fy) * d, -d], 3 * i);
          colors.set(pixels.subarray(4 * i, 4 * i + 3), 3 * i);
          if (!keep[i]) continue;
          points.push(i);
          seen.push(d);
          if (x + 1 === width || y + 1 === height) continue;
          const right = i + 1, down = i + width, both = down + 1;
          if (keep[right] && keep[down]) faces.push(i, down, right);
          if (keep[right] && keep[down] && keep[both]) faces.push(right, down, both);
        }
      if (!points.length) throw new Error("No pixel has a depth, so there is nothing to show in 3D.");
      seen.sort((a, b) => a - b);
      this.middle = seen[seen.length >> 1];
      this.nearest = seen[0];
      this.farthest = seen[seen.length - 1];
      const buffer = (target, data) => {
        const made = gl.createBuffer();
        gl.bindBuffer(target, made);
        gl.bufferData(target, data, gl.STATIC_DRAW);
        return made;
      };
      gl.useProgram(this.program);
      for (const [name, data, kind, normalized] of [["place", places, gl.FLOAT, false], ["color", colors, gl.UNSIGNED_BYTE, true]]) {
        buffer(gl.ARRAY_BUFFER, data);
        const where = gl.getAttribLocation(this.program, name);
        gl.enableVertexAttribArray(where);
        gl.vertexAttribPointer(where, 3, kind, normalized, 0, 0);
      }
      this.elements = {
        points: { buffer: buffer(gl.ELEMENT_ARRAY_BUFFER, new Uint32Array(points)), count: points.length, mode: gl.POINTS },
        mesh: { buffer: buffer(gl.ELEMENT_ARRAY_BUFFER, new Uint32Array(faces)), count: faces.length, mode: gl.TRIANGLES },
      };
      this.canvas.dataset.points = points.length;
      this.canvas.dataset.triangles = faces.length / 3;
    }

    home() {
      this.turn = [0, 0];
      this.back = 0;
      this.shift = [0, 0];
      this.draw();
    }

    shape(kind) {
      this.kind = kind;
      this.draw();
    }

    // Camera to view: turned about the point in the middle of the scene.
    matrix() {
      const [yaw, pitch] = this.turn, m = this.middle;
      const cy = Math.cos(yaw), sy = Math.sin(yaw), cp = Math.cos(pitch), sp = Math.sin(pitch);
      const r = [[cy, 0, sy], [sp * sy, cp, -sp * cy], [-cp * sy, sp, cp * cy]];
      // p -> r (p + (0, 0, m)) - (0, 0, m) + shift, and back along z.
      const t = [r[0][2] * m + this.shift[0], r[1][2] * m + this.shift[1], r[2][2] * m - m - this.back];
      return new Float32Array([r[0][0], r[1][0], r[2][0], 0, r[0][1], r[1][1], r[2][1], 0, r[0][2], r[1][2], r[2][2], 0, t[0], t[1], t[2], 1]);
    }

    draw() {
      const gl = this.gl, { width, height, camera } = this.meta;
      const ratio = Math.min(2, window.devicePixelRatio || 1);
      const shownWidth = Math.max(1, Math.round((this.canvas.clientWidth || width) * ratio));
      const shownHeight = Math.max(1, Math.round((shownWidth * height) / width));
      if (this.canvas.width !== shownWidth || this.canvas.height !== shownHeight) {
        this.canvas.width = shownWidth;
        this.canvas.height = shownHeight;
      }
      gl.viewport(0, 0, shownWidth, shownHeight);
      gl.clearColor(0.125, 0.125, 0.14, 1);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.enable(gl.DEPTH_TEST);
      const uniform = (name) => gl.getUniformLocation(this.program, name);
      gl.uniformMatrix4fv(uniform("view"), false, this.matrix());
      gl.uniform4f(uniform("lens"), (2 * camera.fx) / width, (2 * camera.fy) / height, (2 * camera.cx) / width - 1, 1 - (2 * camera.cy) / height);
      gl.uniform2f(uniform("clip"), this.nearest / 20, 3 * (this.farthest + Math.max(0, this.back)) + this.middle);
      // A point covers its pixel at its own depth.
      gl.uniform1f(uniform("size"), (1.25 * this.middle * shownWidth) / width);
      const { buffer, count, mode } = this.elements[this.kind];
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, buffer);
      gl.drawElements(mode, count, gl.UNSIGNED_INT, 0);
    }

    rotate(yaw, pitch) {
      const limit = (value) => Math.min(1.4, Math.max(-1.4, value));
      this.turn = [limit(this.turn[0] + yaw), limit(this.turn[1] + pitch)];
      this.draw();
    }

    zoom(steps) {
      this.back = Math.min(3 * this.middle, Math.max(-0.9 * this.middle, this.back + steps * this.middle * 0.05));
      this.draw();
    }

    move(x, y) {
      this.shift = [this.shift[0] + x * this.middle, this.shift[1] + y * this.middle];
      this.draw();
    }

    listen() {
      const held = new Map();
      let spread = 0;
      const drop = (event) => { held.delete(event.pointerId); spread = 0; };
      this.canvas.addEventListener("pointerdown", (event) => {
        this.canvas.setPointerCapture(event.pointerId);
        held.set(event.pointerId, [event.clientX, event.clientY]);
      });
      this.canvas.addEventListener("pointermove", (event) => {
        const before = held.get(event.pointerId);
        if (!before) return;
        const dx = event.clientX - before[0], dy = event.clientY - before[1];
        held.set(event.pointerId, [event.clientX, event.clientY]);
        if (held.size > 1) {
          const [a, b] = [...held.values()];
          const apart = Math.hypot(a[0] - b[0], a[1] - b[1]);
          if (spread) this.zoom((spread - apart) / 12);
          spread = apart;
          this.move(dx / 1200, -dy / 1200);
        } else if (event.shiftKey) this.move(dx / 600, -dy / 600);
        else this.rotate(dx / 250, dy / 250);
      });
      for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, drop);
      this.canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.zoom(Math.sign(event.deltaY)); }, { passive: false });
      this.canvas.addEventListener("keydown", (event) => {
        const act = {
          ArrowLeft: () => this.rotate(-0.06, 0), ArrowRight: () => this.rotate(0.06, 0),
          ArrowUp: () => this.rotate(0, -0.06), ArrowDown: () => this.rotate(0, 0.06),
          "+": () => this.zoom(-1), "=": () => this.zoom(-1), "-": () => this.zoom(1), Home: () => this.home(),
        }[event.key];
        if (!act) return;
        event.preventDefault();
        act();
      });
    }

    close() {
      this.watcher.disconnect();
      this.gl.getExtension("WEBGL_lose_context")?.loseContext();
    }
  }

  window.MfCloud = Cloud;
})();
